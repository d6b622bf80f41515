// Memory of the GPU between fences, streams and graphs, each freed when it goes out of scope.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <vector>

namespace openmsa::test {

/// Throws std::runtime_error with CUDA's text.
void require_cuda(cudaError_t error, const char* what);

/// `bytes` of device memory, 256-byte aligned, poisoned like a Buffer of floats. 256 bytes in front of it and behind it
/// hold values that are NaN in every float type and no index: a read past the end shows in results, a write in
/// is_fenced.
class DeviceMemory {
 public:
  explicit DeviceMemory(std::size_t bytes);

  std::byte* data() const;
  std::size_t bytes() const { return bytes_; }
  void poison();
  void upload(const std::vector<std::byte>& from);
  std::vector<std::byte> download() const;
  bool is_fenced() const;

 private:
  std::size_t bytes_;
  std::shared_ptr<std::byte> memory_;
};

class Stream {
 public:
  Stream();
  cudaStream_t get() const { return stream_.get(); }
  void wait() const { require_cuda(cudaStreamSynchronize(get()), "cudaStreamSynchronize"); }

 private:
  std::shared_ptr<CUstream_st> stream_;
};

/// What `enqueue` puts on a stream, captured to be replayed.
class Graph {
 public:
  explicit Graph(const std::function<void(cudaStream_t)>& enqueue);
  void replay(const Stream& stream) const;

 private:
  std::shared_ptr<CUgraphExec_st> executable_;
};

}  // namespace openmsa::test
