#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

#include "device.h"

namespace openmsa::cli {
namespace {

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

class Event {
 public:
  Event() { check(cudaEventCreate(&event_), "cudaEventCreate"); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record() { check(cudaEventRecord(event_), "cudaEventRecord"); }
  double milliseconds_since(const Event& start) const {
    float milliseconds = 0;
    check(cudaEventSynchronize(event_), "cudaEventSynchronize");
    check(cudaEventElapsedTime(&milliseconds, start.event_, event_), "cudaEventElapsedTime");
    return milliseconds;
  }

 private:
  cudaEvent_t event_;
};

class CudaDevice : public Device {
 public:
  ~CudaDevice() override { cudaFree(cache_filler_); }

  void* allocate(std::size_t bytes) override {
    void* memory = nullptr;
    if (bytes > 0) check(cudaMalloc(&memory, bytes), "cudaMalloc");
    return memory;
  }
  void release(void* memory) noexcept override { cudaFree(memory); }
  void copy(void* to, const void* from, std::size_t bytes) override {
    check(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), "cudaMemcpy");
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }
  double time(const std::function<void()>& work) override {
    constexpr std::size_t kMoreThanCache = std::size_t{256} << 20;
    if (cache_filler_ == nullptr) cache_filler_ = allocate(kMoreThanCache);
    check(cudaMemsetAsync(cache_filler_, 0, kMoreThanCache), "cudaMemsetAsync");
    Event start, end;
    start.record();
    work();
    end.record();
    return end.milliseconds_since(start);
  }

 private:
  void* cache_filler_ = nullptr;
};

}  // namespace

std::unique_ptr<Device> make_cuda_device() { return std::make_unique<CudaDevice>(); }

}  // namespace openmsa::cli
