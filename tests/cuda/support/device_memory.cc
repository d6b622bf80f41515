#include "cuda/support/device_memory.h"

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace openmsa::test {
namespace {

constexpr std::size_t kFenceBytes = 256;
constexpr std::uint16_t kFence = 0xffc1;

std::vector<std::byte> fence() {
  const std::vector<std::uint16_t> values(kFenceBytes / sizeof(kFence), kFence);
  std::vector<std::byte> bytes(kFenceBytes);
  std::memcpy(bytes.data(), values.data(), kFenceBytes);
  return bytes;
}

/// Copies and fills return before the device is done; streams other than the default one would not wait for them.
void finish() { require_cuda(cudaStreamSynchronize(nullptr), "cudaStreamSynchronize"); }

void copy_bytes(void* to, const void* from, std::size_t bytes) {
  require_cuda(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), "cudaMemcpy");
  finish();
}

}  // namespace

void require_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

DeviceMemory::DeviceMemory(std::size_t bytes) : bytes_(bytes) {
  void* memory = nullptr;
  require_cuda(cudaMalloc(&memory, bytes + 2 * kFenceBytes), "cudaMalloc");
  memory_ = {static_cast<std::byte*>(memory), [](std::byte* allocated) { cudaFree(allocated); }};
  copy_bytes(memory_.get(), fence().data(), kFenceBytes);
  copy_bytes(data() + bytes, fence().data(), kFenceBytes);
  poison();
}

std::byte* DeviceMemory::data() const { return memory_.get() + kFenceBytes; }

void DeviceMemory::poison() {
  require_cuda(cudaMemset(data(), 0xff, bytes_), "cudaMemset");
  finish();
}

void DeviceMemory::upload(const std::vector<std::byte>& from) {
  if (from.size() != bytes_) throw std::logic_error("upload: expected " + std::to_string(bytes_) + " bytes");
  copy_bytes(data(), from.data(), bytes_);
}

std::vector<std::byte> DeviceMemory::download() const {
  std::vector<std::byte> result(bytes_);
  copy_bytes(result.data(), data(), bytes_);
  return result;
}

bool DeviceMemory::is_fenced() const {
  std::vector<std::byte> front(kFenceBytes), back(kFenceBytes);
  copy_bytes(front.data(), memory_.get(), kFenceBytes);
  copy_bytes(back.data(), data() + bytes_, kFenceBytes);
  return front == fence() && back == fence();
}

Stream::Stream() {
  cudaStream_t stream = nullptr;
  require_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  stream_ = {stream, [](cudaStream_t created) { cudaStreamDestroy(created); }};
}

Graph::Graph(const std::function<void(cudaStream_t)>& enqueue) {
  const Stream stream;
  require_cuda(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  enqueue(stream.get());
  cudaGraph_t graph = nullptr;
  require_cuda(cudaStreamEndCapture(stream.get(), &graph), "cudaStreamEndCapture");
  cudaGraphExec_t executable = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  require_cuda(error, "cudaGraphInstantiate");
  executable_ = {executable, [](cudaGraphExec_t instance) { cudaGraphExecDestroy(instance); }};
}

void Graph::replay(const Stream& stream) const {
  require_cuda(cudaGraphLaunch(executable_.get(), stream.get()), "cudaGraphLaunch");
}

}  // namespace openmsa::test
