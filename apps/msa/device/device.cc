#include "msa/device/device.h"

#include <chrono>
#include <cstdint>
#include <cstring>
#include <new>
#include <utility>

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
  std::unique_ptr<Series> record(int count, std::function<void(int, void*)> call) override {
    return std::make_unique<HostSeries>(*this, count, std::move(call));
  }
  std::optional<double> read_gb_per_s() override { return std::nullopt; }

 private:
  class HostSeries : public Series {
   public:
    HostSeries(HostDevice& device, int count, std::function<void(int, void*)> call)
        : device_(device), count_(count), call_(std::move(call)) {}
    double run() override {
      const int number = static_cast<int>(device_.runs_++ % count_);
      return device_.time([&] { call_(number, nullptr); });
    }

   private:
    HostDevice& device_;
    int count_;
    std::function<void(int, void*)> call_;
  };

  static constexpr std::align_val_t kAlignment{256};
  std::int64_t runs_ = 0;  // of all series
};

}  // namespace

std::unique_ptr<Device> make_host_device() { return std::make_unique<HostDevice>(); }

std::unique_ptr<Device> make_device(openmsa_backend backend) {
  return backend == OPENMSA_BACKEND_CUDA ? make_cuda_device() : make_host_device();
}

}  // namespace openmsa::cli
