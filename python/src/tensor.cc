#include "tensor.h"

namespace openmsa::python {
namespace {

namespace nb = nanobind;

struct Dtype {
  const char* name;
  openmsa_dtype value;
  std::uint8_t code;  // DLPack's DLDataTypeCode and bits
  std::uint8_t bits;
};

constexpr Dtype kDtypes[] = {
    {"float32", OPENMSA_FLOAT32, 2, 32}, {"bfloat16", OPENMSA_BFLOAT16, 4, 16},
    {"float16", OPENMSA_FLOAT16, 2, 16}, {"float64", OPENMSA_FLOAT64, 2, 64},
    {"int32", OPENMSA_INT32, 0, 32},     {"float8_e4m3fn", OPENMSA_FLOAT8_E4M3, 10, 8},
    {"int64", OPENMSA_INT64, 0, 64},
};
constexpr const char* kDtypeNames = "float32, bfloat16, float16, float64, int32, int64 or float8_e4m3fn";

openmsa_dtype dtype_of(const std::string& argument, nb::dlpack::dtype dtype) {
  openmsa_dtype result{};
  if (known_dtype(dtype, result)) return result;
  throw nb::type_error((argument + ": expected dtype " + kDtypeNames + ", got DLPack's type " +
                        std::to_string(dtype.code) + " of " + std::to_string(dtype.bits) + " bits")
                           .c_str());
}

template <class Array>
openmsa_tensor view(const std::string& argument, const Array& array, const std::string& dtype) {
  if (array.ndim() > OPENMSA_MAX_RANK) {
    throw nb::value_error((argument + ": expected rank at most " + std::to_string(OPENMSA_MAX_RANK) + ", got " +
                           std::to_string(array.ndim()))
                              .c_str());
  }
  openmsa_tensor tensor{};
  tensor.data = const_cast<void*>(static_cast<const void*>(array.data()));
  tensor.dtype = dtype.empty() ? dtype_of(argument, array.dtype()) : dtype_from_name(argument, dtype);
  tensor.rank = static_cast<std::int32_t>(array.ndim());
  for (std::size_t d = 0; d < array.ndim(); ++d) {
    tensor.shape[d] = static_cast<std::int64_t>(array.shape(d));
    tensor.strides[d] = array.stride(d);
  }
  return tensor;
}

/// The view, and in `alive` what owns its memory.
template <class Array>
openmsa_tensor import(const std::string& argument, nb::handle object, const std::string& dtype, const char* expected,
                      nb::list& alive) {
  Array array;
  if (!nb::try_cast<Array>(object, array)) {
    throw nb::type_error(
        (argument + ": expected " + expected + ", got " + nb::cast<std::string>(nb::type_name(object.type()))).c_str());
  }
  alive.append(object);
  return view(argument, array, dtype);
}

}  // namespace

openmsa_dtype dtype_from_name(const std::string& argument, const std::string& name) {
  for (const Dtype& known : kDtypes) {
    if (name == known.name) return known.value;
  }
  throw nb::type_error((argument + ": expected dtype " + kDtypeNames + ", got " + name).c_str());
}

bool known_dtype(nb::dlpack::dtype dtype, openmsa_dtype& to) {
  for (const Dtype& known : kDtypes) {
    if (dtype.code != known.code || dtype.bits != known.bits || dtype.lanes != 1) continue;
    to = known.value;
    return true;
  }
  return false;
}

const char* dtype_name(openmsa_dtype dtype) {
  for (const Dtype& known : kDtypes) {
    if (dtype == known.value) return known.name;
  }
  return "";
}

void Tensors::set(const std::string& name, nb::handle array, const std::string& dtype, bool is_written) {
  openmsa_tensor* const tensor = openmsa_tensors_at(&tensors_, name.c_str());
  if (tensor == nullptr) throw nb::type_error((name + ": expected the name of a tensor").c_str());
  *tensor = is_written
                ? import <nb::ndarray<>>(name, array, dtype, "an array that can be written", alive_)
                : import <nb::ndarray<nb::ro>>(name, array, dtype, "an array with __dlpack__ or a buffer", alive_);
}

}  // namespace openmsa::python
