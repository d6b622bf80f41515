#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

#include "msa/device/device.h"
#include "msa/device/read_memory.h"
#include "msa/device/timing.h"

namespace openmsa::cli {
namespace {

constexpr std::size_t kMoreThanCache = std::size_t{256} << 20;

void check(cudaError_t error, const std::string& what) {
  if (error != cudaSuccess) throw std::runtime_error(what + ": " + cudaGetErrorString(error));
}

class Event {
 public:
  Event() { check(cudaEventCreate(&event_), "cudaEventCreate"); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(cudaStream_t stream = nullptr) { check(cudaEventRecord(event_, stream), "cudaEventRecord"); }
  double milliseconds_since(const Event& start) const {
    float milliseconds = 0;
    check(cudaEventSynchronize(event_), "cudaEventSynchronize");
    check(cudaEventElapsedTime(&milliseconds, start.event_, event_), "cudaEventElapsedTime");
    return milliseconds;
  }

 private:
  cudaEvent_t event_;
};

/// A CUDA graph of calls, with a stream of its own.
class Graph : public Series {
 public:
  /// `cache_filler`: kMoreThanCache of device memory.
  Graph(void* cache_filler, int count, const std::function<void(int, void*)>& call)
      : cache_filler_(cache_filler), count_(count) {
    check(cudaStreamCreate(&stream_), "cudaStreamCreate");
    cudaGraph_t graph = nullptr;
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    for (int number = 0; number < count; ++number) call(number, stream_);
    check(cudaStreamEndCapture(stream_, &graph), "cudaStreamEndCapture");
    check(cudaGraphInstantiate(&graph_, graph, 0), "cudaGraphInstantiate");
    check(cudaGraphDestroy(graph), "cudaGraphDestroy");
    check(cudaGraphUpload(graph_, stream_), "cudaGraphUpload");
  }
  ~Graph() override {
    cudaGraphExecDestroy(graph_);
    cudaStreamDestroy(stream_);
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  double run() override {
    // Reading empties the cache without leaving anything to be written back. Several passes, so that the graph is
    // waiting on the device before they end.
    constexpr int kPasses = 4;
    for (int pass = 0; pass < kPasses; ++pass) {
      check(read_memory(cache_filler_, kMoreThanCache, stream_), "read_memory");
    }
    start_.record(stream_);
    check(cudaGraphLaunch(graph_, stream_), "cudaGraphLaunch");
    end_.record(stream_);
    return end_.milliseconds_since(start_) / count_;
  }

 private:
  void* cache_filler_;
  int count_;
  cudaStream_t stream_ = nullptr;
  cudaGraphExec_t graph_ = nullptr;
  Event start_, end_;
};

class CudaDevice : public Device {
 public:
  ~CudaDevice() override { cudaFree(cache_filler_); }

  void* allocate(std::size_t bytes) override {
    void* memory = nullptr;
    if (bytes > 0) check(cudaMalloc(&memory, bytes), "cudaMalloc of " + std::to_string(bytes >> 20) + " MiB");
    return memory;
  }
  void release(void* memory) noexcept override { cudaFree(memory); }
  void copy(void* to, const void* from, std::size_t bytes) override {
    check(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), "cudaMemcpy");
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }
  double time(const std::function<void()>& work) override {
    check(cudaMemsetAsync(cache_filler(), 0, kMoreThanCache), "cudaMemsetAsync");
    Event start, end;
    start.record();
    work();
    end.record();
    return end.milliseconds_since(start);
  }
  std::unique_ptr<Series> record(int count, std::function<void(int, void*)> call) override {
    return std::make_unique<Graph>(cache_filler(), count, call);
  }
  std::optional<double> read_gb_per_s() override {
    constexpr std::size_t kBytes = std::size_t{2} << 30;  // little of it is still in the cache for the next pass
    constexpr int kPasses = 4, kRepeats = 5;
    const DeviceBuffer memory(*this, kBytes);
    const auto pass = [&] { check(read_memory(memory.data(), kBytes, nullptr), "read_memory"); };
    Timing timing;
    for (int i = 0; i < kRepeats; ++i) {
      pass();
      Event start, end;
      start.record();
      for (int n = 0; n < kPasses; ++n) pass();
      end.record();
      timing.keep(end.milliseconds_since(start) / kPasses);
    }
    return static_cast<double>(kBytes) / timing.median() * 1e-6;
  }

 private:
  void* cache_filler() {
    if (cache_filler_ == nullptr) cache_filler_ = allocate(kMoreThanCache);
    return cache_filler_;
  }

  void* cache_filler_ = nullptr;
};

}  // namespace

std::unique_ptr<Device> make_cuda_device() { return std::make_unique<CudaDevice>(); }

}  // namespace openmsa::cli
