// The element types of the safetensors format, as a table.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/safetensors.h"

namespace openmsa::io {

struct ElementTypeInfo {
  const char* name;
  ElementType type;
  std::uint64_t bytes;
  int dtype;  // openmsa_dtype, or 0 where the library has none
};

/// nullptr: a type this program does not know; its size cannot be checked.
const ElementTypeInfo* find_type(const std::string& name);

/// The row of any type but kOther.
const ElementTypeInfo& info(ElementType type);

/// The row of a dtype that the library knows.
const ElementTypeInfo& info(openmsa_dtype dtype);

/// Elements of `shape`, or false when its extents other than zero multiply to more than 63 bits (strides could not be
/// represented then, even if another extent is zero) or one is negative.
bool count_elements(const std::vector<std::int64_t>& shape, std::uint64_t& count);

}  // namespace openmsa::io
