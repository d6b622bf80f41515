// Tensors of a library with DLPack's C exchange API (PyTorch from 2.10 on): seen as they are, with no Python object made.
#pragma once

#include <nanobind/nanobind.h>
#include <openmsa/openmsa.h>

#include <cstdint>

namespace openmsa::python {

/// The tensors of a call, all on one device. They have to outlive it.
struct Views {
  openmsa_tensors tensors;
  bool is_cuda;
  std::int32_t device;    // its index
  std::uintptr_t stream;  // the library's current one there; 0 on the CPU
};

/// Views of tensors by name, in `dicts`, through `api`, the capsule __dlpack_c_exchange_api__ of
/// `types`; what is None, or `other` than a tensor, is passed over. None where one of them is of another type, has no such
/// view or memory that holds other numbers, or where they lie on several devices: what is wrong then, others say.
nanobind::object view_tensors(nanobind::handle api, nanobind::tuple types, nanobind::tuple dicts,
                              nanobind::handle other);

}  // namespace openmsa::python
