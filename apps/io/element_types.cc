#include "io/element_types.h"

#include <algorithm>

namespace openmsa::io {
namespace {

using enum ElementType;

constexpr ElementTypeInfo kTypes[] = {
    {"F64", kF64, 8, OPENMSA_FLOAT64},
    {"F32", kF32, 4, OPENMSA_FLOAT32},
    {"F16", kF16, 2, OPENMSA_FLOAT16},
    {"BF16", kBF16, 2, OPENMSA_BFLOAT16},
    {"I64", kI64, 8, 0},
    {"I32", kI32, 4, OPENMSA_INT32},
    {"U64", kOther, 8, 0},
    {"U32", kOther, 4, 0},
    {"I16", kOther, 2, 0},
    {"U16", kOther, 2, 0},
    {"I8", kOther, 1, 0},
    {"U8", kOther, 1, 0},
    {"BOOL", kOther, 1, 0},
    {"F8_E4M3", kOther, 1, 0},
    {"F8_E5M2", kOther, 1, 0},
};

template <class Predicate>
const ElementTypeInfo* find_if(Predicate predicate) {
  const auto* found = std::find_if(std::begin(kTypes), std::end(kTypes), predicate);
  return found == std::end(kTypes) ? nullptr : found;
}

}  // namespace

const ElementTypeInfo* find_type(const std::string& name) {
  return find_if([&](const ElementTypeInfo& row) { return name == row.name; });
}

const ElementTypeInfo& info(ElementType type) {
  return *find_if([&](const ElementTypeInfo& row) { return row.type == type; });
}

const ElementTypeInfo& info(openmsa_dtype dtype) {
  return *find_if([&](const ElementTypeInfo& row) { return row.dtype == dtype; });
}

bool count_elements(const std::vector<std::int64_t>& shape, std::uint64_t& count) {
  std::int64_t product = 1;
  bool empty = false;
  for (std::int64_t extent : shape) {
    if (extent < 0) return false;
    if (extent == 0) empty = true;
    if (extent != 0 && __builtin_mul_overflow(product, extent, &product)) return false;
  }
  count = empty ? 0 : static_cast<std::uint64_t>(product);
  return true;
}

}  // namespace openmsa::io
