#include "support/huge_memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstring>

namespace openmsa::test {
namespace {

constexpr std::int64_t kStride = (std::int64_t{1} << 31) + 64;

/// Bytes of one entry of the first dimension; the tensor is row-major.
std::size_t entry_bytes(const openmsa_tensor& tensor) {
  std::size_t bytes = openmsa_dtype_bytes(tensor.dtype);
  for (int d = 1; d < tensor.rank; ++d) bytes *= static_cast<std::size_t>(tensor.shape[d]);
  return bytes;
}

}  // namespace

HugeTensor::HugeTensor(const openmsa_tensor& compact) : view_(compact) {
  const std::size_t stride_bytes = static_cast<std::size_t>(kStride) * openmsa_dtype_bytes(compact.dtype);
  const std::size_t bytes = stride_bytes * static_cast<std::size_t>(compact.shape[0]);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return;
  memory_ = {static_cast<std::byte*>(memory), [bytes](std::byte* mapped) { munmap(mapped, bytes); }};
  view_.data = memory;
  view_.strides[0] = kStride;
  for (std::int64_t i = 0; i < compact.shape[0]; ++i) {
    std::memcpy(memory_.get() + static_cast<std::size_t>(i) * stride_bytes,
                static_cast<const std::byte*>(compact.data) + static_cast<std::size_t>(i) * entry_bytes(compact),
                entry_bytes(compact));
  }
}

void HugeTensor::copy_to(Buffer& buffer) const {
  const openmsa_tensor to = buffer.view();
  const std::size_t stride_bytes = static_cast<std::size_t>(kStride) * openmsa_dtype_bytes(view_.dtype);
  for (std::int64_t i = 0; i < view_.shape[0]; ++i) {
    std::memcpy(static_cast<std::byte*>(to.data) + static_cast<std::size_t>(i) * entry_bytes(view_),
                memory_.get() + static_cast<std::size_t>(i) * stride_bytes, entry_bytes(view_));
  }
}

}  // namespace openmsa::test
