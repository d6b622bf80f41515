// The JSON header of a safetensors file: untrusted text to checked entries.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "io/safetensors.h"

namespace openmsa::io {

inline constexpr std::uint64_t kLengthBytes = 8;             // the header's length, before the header
inline constexpr std::uint64_t kMaxHeaderBytes = 100000000;  // the limit of the reference implementation
inline constexpr const char* kMetadata = "__metadata__";

struct HeaderEntry {
  ElementType type;
  std::string type_name;
  std::vector<std::int64_t> shape;
  std::uint64_t begin;  // offsets in the data section
  std::uint64_t end;
};

struct Header {
  std::map<std::string, HeaderEntry> entries;
  std::map<std::string, std::string> metadata;
};

/// Entries agree with themselves, and together they cover the data section without gap or overlap.
/// InputError: the entry and what is wrong.
Header parse_header(std::string_view text, std::uint64_t data_bytes);

}  // namespace openmsa::io
