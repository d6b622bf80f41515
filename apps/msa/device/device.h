// Where a backend's tensors live and its time is taken: this process's memory, or the current CUDA device.
#pragma once

#include <openmsa/openmsa.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>

#include "judge/copy.h"

namespace openmsa::cli {

/// Calls that follow one another, made again and again.
class Series {
 public:
  virtual ~Series() = default;
  virtual double run() = 0;  // milliseconds of one call
};

class Device {
 public:
  virtual ~Device() = default;
  virtual void* allocate(std::size_t bytes) = 0;  // 256-byte aligned
  virtual void release(void* memory) noexcept = 0;
  /// Between any of host and device memory; waits until it is done.
  virtual void copy(void* to, const void* from, std::size_t bytes) = 0;
  /// copy() for those who know nothing of devices.
  judge::Copy copier() {
    return [this](void* to, const void* from, std::size_t bytes) { copy(to, from, bytes); };
  }
  /// Milliseconds that `work`, which may only enqueue, takes; the GPU's L2 cache is overwritten first.
  virtual double time(const std::function<void()>& work) = 0;
  /// Calls 0 to count - 1, which `call` makes on a stream. On the GPU they become one CUDA graph, and every run replays
  /// it with a cold L2 cache; on the host a run is one call, and the series of a device take turns in their numbers, so
  /// that no run finds in the caches what the run before it has read.
  virtual std::unique_ptr<Series> record(int count, std::function<void(int number, void* stream)> call) = 0;
  /// The rate of a kernel that does nothing but read device memory; none on the host.
  virtual std::optional<double> read_gb_per_s() = 0;
};

std::unique_ptr<Device> make_device(openmsa_backend backend);
std::unique_ptr<Device> make_host_device();
/// std::runtime_error in a build without CUDA, and from any call that CUDA refuses.
std::unique_ptr<Device> make_cuda_device();

class DeviceBuffer {
 public:
  DeviceBuffer(Device& device, std::size_t bytes) : memory_(device.allocate(bytes), Release{&device}), bytes_(bytes) {}
  void* data() const { return memory_.get(); }
  std::size_t bytes() const { return bytes_; }
  openmsa_workspace workspace() const { return {data(), bytes_, nullptr}; }

 private:
  struct Release {
    Device* device;
    void operator()(void* memory) const noexcept { device->release(memory); }
  };
  std::unique_ptr<void, Release> memory_;
  std::size_t bytes_;
};

}  // namespace openmsa::cli
