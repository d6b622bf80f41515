// The table of operations and tensors, as the public header shows it.
#include <openmsa/openmsa.h>

#include <algorithm>
#include <cstddef>
#include <string_view>

#include "api/guarded.h"
#include "api/operations.h"

namespace {

using openmsa::api::contains;
using openmsa::api::Field;
using openmsa::api::Kind;

/// nullptr for what is no tensor's name.
const Field* find_field(const char* name) {
  if (name == nullptr) return nullptr;
  const auto fields = openmsa::api::fields();
  const auto found = std::find_if(fields.begin(), fields.end(),
                                  [=](const Field& field) { return std::string_view(field.name) == name; });
  return found == fields.end() ? nullptr : &*found;
}

/// See openmsa_tensor_dtype. A kv_dtype or index_dtype of 0 stands for the plan's dtype.
openmsa_dtype dtype_of(Kind kind, const openmsa_config& config) {
  switch (kind) {
    case Kind::kInt32:
      return OPENMSA_INT32;
    case Kind::kCandidate:
      return OPENMSA_INT64;
    case Kind::kScale:
      return OPENMSA_FLOAT32;
    case Kind::kFigure:
      return config.dtype == OPENMSA_FLOAT64 ? OPENMSA_FLOAT64 : OPENMSA_FLOAT32;
    case Kind::kKvCache:
      return config.kv_dtype != 0 ? config.kv_dtype : config.dtype;
    case Kind::kIndexKCache:
      return config.index_dtype != 0 ? config.index_dtype : config.dtype;
    case Kind::kIndexK:
      return config.page_size != 0 ? config.dtype : dtype_of(Kind::kIndexKCache, config);
    case Kind::kData:
    case Kind::kIndexQ:
    case Kind::kResult:
      break;
  }
  return config.dtype;
}

}  // namespace

const char* openmsa_op_name(openmsa_op op) {
  return op >= 0 && op < OPENMSA_OP_COUNT ? openmsa::api::operation_name(op) : nullptr;
}

openmsa_status openmsa_op_from_name(const char* name, openmsa_op* op) {
  return openmsa::api::guarded([&] {
    openmsa::core::require(name != nullptr && op != nullptr, "op: expected pointers, got NULL");
    int number = 0;
    while (number < OPENMSA_OP_COUNT && std::string_view(openmsa_op_name(static_cast<openmsa_op>(number))) != name) {
      ++number;
    }
    openmsa::core::require(number < OPENMSA_OP_COUNT, "op: expected the name of an operation, got ", name);
    *op = static_cast<openmsa_op>(number);
  });
}

int32_t openmsa_tensor_count(void) { return static_cast<int32_t>(openmsa::api::fields().size()); }

const char* openmsa_tensor_name(int32_t tensor) {
  if (tensor < 0 || tensor >= openmsa_tensor_count()) return nullptr;
  return openmsa::api::fields()[static_cast<std::size_t>(tensor)].name;
}

openmsa_tensor* openmsa_tensors_at(openmsa_tensors* tensors, const char* name) {
  const Field* const field = find_field(name);
  if (tensors == nullptr || field == nullptr) return nullptr;
  openmsa_tensor* const tensor = &(tensors->*field->member);
  const auto end = reinterpret_cast<std::byte*>(tensor + 1) - reinterpret_cast<std::byte*>(tensors);
  return static_cast<std::size_t>(end) <= tensors->struct_size ? tensor : nullptr;
}

const char* openmsa_tensor_extent(const char* name, int32_t dimension) {
  const Field* const field = find_field(name);
  if (field == nullptr || dimension < 0 || dimension >= field->rank) return nullptr;
  return openmsa::api::dim_name(field->shape[dimension]);
}

openmsa_dtype openmsa_tensor_dtype(const openmsa_config* config, const char* name) {
  openmsa_dtype result{};
  openmsa::api::guarded([&] {
    const Field* const field = find_field(name);
    if (field != nullptr) result = dtype_of(field->kind, openmsa::api::adopt(config, "config"));
  });
  return result;
}

int32_t openmsa_tensor_use(const openmsa_config* config, openmsa_op op, const char* name) {
  int32_t result = 0;
  openmsa::api::guarded([&] {
    const Field* const field = find_field(name);
    if (field == nullptr) return;
    const openmsa::api::Operation operation = openmsa::api::operation(op, openmsa::api::adopt(config, "config"));
    const auto id = static_cast<std::uint32_t>(field - openmsa::api::fields().data());
    if (contains(operation.reads, id)) result |= OPENMSA_READS;
    if (contains(operation.may_read, id)) result |= OPENMSA_MAY_READ;
    if (contains(operation.writes, id)) result |= OPENMSA_WRITES;
    if (contains(operation.may_write, id)) result |= OPENMSA_MAY_WRITE;
  });
  return result;
}
