#include "memory.h"

#include <cuda_runtime_api.h>

#include "layer.h"

namespace openmsa::nccl {
namespace {

void check_cuda(cudaError_t error, const char* call) {
  if (error != cudaSuccess) fail(OPENMSA_CUDA_ERROR, call, ": ", cudaGetErrorString(error));
}

void copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, void* stream) {
  check_cuda(cudaMemcpyAsync(to, from, bytes, kind, static_cast<cudaStream_t>(stream)), "cudaMemcpyAsync");
}

}  // namespace

void check_backend(openmsa_backend backend) {
  if (backend != OPENMSA_BACKEND_CUDA) {
    fail(OPENMSA_UNSUPPORTED, "backend: expected OPENMSA_BACKEND_CUDA, whose tensors NCCL reaches, got ",
         static_cast<int>(backend));
  }
}

void copy_from_host(void* to, const void* from, std::size_t bytes, void* stream) {
  copy(to, from, bytes, cudaMemcpyHostToDevice, stream);  // of pageable memory, which is read before this returns
}

void copy_to_host(void* to, const void* from, std::size_t bytes, void* stream) {
  copy(to, from, bytes, cudaMemcpyDeviceToHost, stream);
  check_cuda(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "cudaStreamSynchronize");
}

}  // namespace openmsa::nccl
