#include "exchange.h"

#include <nanobind/stl/string.h>

#include <algorithm>
#include <string>
#include <utility>

#include "tensor.h"

namespace openmsa::python {
namespace {

namespace nb = nanobind;

constexpr std::int32_t kCpu = 1, kCuda = 2;  // DLDeviceType

/// DLPackExchangeAPI of DLPack 1.
struct ExchangeApi {
  std::uint32_t major, minor;
  const ExchangeApi* previous;  // of an older major version
  void* not_used_here[3];       // managed_tensor_allocator, managed_tensor_from_py_object_no_sync, .._to_..
  int (*dltensor_from_py_object_no_sync)(void* object, nb::dlpack::dltensor* out);  // may be absent
  int (*current_work_stream)(std::int32_t device_type, std::int32_t device, void** out);
};

const ExchangeApi* find_api(nb::handle capsule) {
  auto* api = static_cast<const ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (api == nullptr) nb::raise_python_error();
  while (api != nullptr && api->major != 1) api = api->previous;
  return api;
}

class Viewer {
 public:
  Viewer(const ExchangeApi& api, nb::tuple types) : api_(api), types_(std::move(types)) {
    openmsa_tensors_init(&views_.tensors);
  }

  bool add(nb::dict tensors, nb::handle other) {
    for (const auto [name, tensor] : tensors) {
      if (tensor.is_none() || tensor.is(other)) continue;
      if (!add(nb::cast<std::string>(name), tensor)) return false;
    }
    return true;
  }

  bool find_stream() {
    views_.is_cuda = device_.device_type == kCuda;
    views_.device = device_.device_id;
    void* stream = nullptr;
    if (views_.is_cuda && api_.current_work_stream(kCuda, views_.device, &stream) != 0) return failed();
    views_.stream = reinterpret_cast<std::uintptr_t>(stream);
    return views_.is_cuda || device_.device_type == kCpu;
  }

  const Views& views() const { return views_; }

 private:
  bool add(const std::string& name, nb::handle object) {
    nb::dlpack::dltensor from{};
    openmsa_tensor* const to = openmsa_tensors_at(&views_.tensors, name.c_str());
    if (to == nullptr || !is_plain(object)) return false;
    if (api_.dltensor_from_py_object_no_sync(object.ptr(), &from) != 0) return failed();
    if (is_first_) device_ = from.device;
    is_first_ = false;
    const bool is_elsewhere =
        from.device.device_type != device_.device_type || from.device.device_id != device_.device_id;
    if (is_elsewhere || from.ndim > OPENMSA_MAX_RANK || !known_dtype(from.dtype, to->dtype)) return false;
    to->data = static_cast<char*>(from.data) + from.byte_offset;
    to->rank = from.ndim;
    std::copy_n(from.shape, from.ndim, to->shape);
    std::copy_n(from.strides, from.ndim, to->strides);
    return true;
  }

  /// No subclass, which may stand for anything, nor a view whose numbers are the negatives of those in memory.
  bool is_plain(nb::handle object) const {
    const auto is_type = [&](nb::handle type) { return object.type().is(type); };
    if (std::none_of(types_.begin(), types_.end(), is_type)) return false;
    const nb::object is_negative = nb::steal(PyObject_CallMethodObjArgs(object.ptr(), is_neg_.ptr(), nullptr));
    return is_negative.is_valid() ? is_negative.is(nb::handle(Py_False)) : failed();
  }

  static bool failed() {
    PyErr_Clear();
    return false;
  }

  const ExchangeApi& api_;
  const nb::tuple types_;
  const nb::str is_neg_{"is_neg"};
  Views views_{};
  nb::dlpack::device device_{};
  bool is_first_ = true;
};

}  // namespace

nb::object view_tensors(nb::handle capsule, nb::tuple types, nb::tuple dicts, nb::handle other) {
  const ExchangeApi* const api = find_api(capsule);
  if (api == nullptr || api->dltensor_from_py_object_no_sync == nullptr) return nb::none();
  Viewer viewer(*api, std::move(types));
  for (const nb::handle tensors : dicts) {
    if (!viewer.add(nb::cast<nb::dict>(tensors), other)) return nb::none();
  }
  return viewer.find_stream() ? nb::cast(viewer.views()) : nb::none();
}

}  // namespace openmsa::python
