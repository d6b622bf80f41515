// An array of any Python library as the C API's view of it.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <openmsa/openmsa.h>

#include <string>

namespace openmsa::python {

/// Keeps what the views point to alive for the length of a call.
class Tensors {
 public:
  Tensors() { openmsa_tensors_init(&tensors_); }

  /// `array` has __dlpack__ or the buffer protocol, or is a DLPack capsule. `dtype`, where not empty, says what its
  /// bytes mean: for types that neither protocol can name in every library.
  void set(const std::string& name, nanobind::handle array, const std::string& dtype, bool is_written);

  const openmsa_tensors& get() const { return tensors_; }

 private:
  openmsa_tensors tensors_;
  nanobind::list alive_;
};

/// "float32" and so on; throws nanobind::type_error.
openmsa_dtype dtype_from_name(const std::string& argument, const std::string& name);

/// Whether the library has the type, which then is `to`.
bool known_dtype(nanobind::dlpack::dtype dtype, openmsa_dtype& to);

/// "float32" and so on; "" for a value that is no dtype.
const char* dtype_name(openmsa_dtype dtype);

}  // namespace openmsa::python
