#include "api/memory.h"

#include <algorithm>
#include <cstdint>

namespace openmsa::api {
namespace {

/// Whether the elements take every byte from the first one's begin to the last one's end.
bool has_no_gaps(const openmsa_tensor& tensor, std::size_t spanned) {
  std::size_t bytes = openmsa_dtype_bytes(tensor.dtype);
  for (int d = 0; d < tensor.rank; ++d) {
    if (tensor.strides[d] == 0) continue;  // the same elements again
    if (__builtin_mul_overflow(bytes, static_cast<std::size_t>(tensor.shape[d]), &bytes)) return false;
  }
  return bytes == spanned;
}

}  // namespace

bool is_empty(const openmsa_tensor& tensor) {
  return std::any_of(tensor.shape, tensor.shape + tensor.rank, [](std::int64_t extent) { return extent == 0; });
}

std::optional<std::size_t> bytes_spanned(const openmsa_tensor& tensor) {
  const auto element = static_cast<std::int64_t>(openmsa_dtype_bytes(tensor.dtype));
  std::int64_t bytes = element;
  for (int d = 0; d < tensor.rank; ++d) {
    std::int64_t step = 0, reach = 0;  // the step also of a single element: it is computed, if not taken
    if (__builtin_mul_overflow(tensor.strides[d], element, &step) ||
        __builtin_mul_overflow(step, tensor.shape[d] - 1, &reach) || __builtin_add_overflow(bytes, reach, &bytes)) {
      return std::nullopt;
    }
  }
  std::uintptr_t end = 0;
  const auto begin = reinterpret_cast<std::uintptr_t>(tensor.data);
  if (__builtin_add_overflow(begin, static_cast<std::uintptr_t>(bytes), &end)) return std::nullopt;
  return static_cast<std::size_t>(bytes);
}

bool shares_memory(const openmsa_tensor& tensor, const void* memory, std::size_t bytes) {
  const std::size_t spanned = bytes_spanned(tensor).value_or(0);
  const auto from = reinterpret_cast<std::uintptr_t>(memory), begin = reinterpret_cast<std::uintptr_t>(tensor.data);
  const std::uintptr_t to = from + bytes, end = begin + spanned;
  if (end <= from || to <= begin) return false;
  return from <= begin || end <= to || has_no_gaps(tensor, spanned);  // the first, the last or any element lies there
}

}  // namespace openmsa::api
