#include "device.h"

#include <chrono>
#include <cstring>
#include <new>

namespace openmsa::cli {
namespace {

class HostDevice : public Device {
 public:
  void* allocate(std::size_t bytes) override { return ::operator new(bytes, kAlignment); }
  void release(void* memory) noexcept override { ::operator delete(memory, kAlignment); }
  void copy(void* to, const void* from, std::size_t bytes) override { std::memcpy(to, from, bytes); }
  double time(const std::function<void()>& work) override {
    const auto start = std::chrono::steady_clock::now();
    work();
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  }

 private:
  static constexpr std::align_val_t kAlignment{256};
};

}  // namespace

std::unique_ptr<Device> make_host_device() { return std::make_unique<HostDevice>(); }

std::unique_ptr<Device> make_device(openmsa_backend backend) {
  return backend == OPENMSA_BACKEND_CUDA ? make_cuda_device() : make_host_device();
}

}  // namespace openmsa::cli
