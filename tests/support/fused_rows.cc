#include "support/fused_rows.h"

namespace openmsa::test {

Buffer fused_rows(const Buffer& k_cache, const Buffer& v_cache, bool head_major) {
  Shape shape = k_cache.shape();
  const std::int64_t page_size = shape[1], heads = shape[2], dim = shape[3], row = 2 * dim;
  shape[3] = row;
  Buffer result =
      Buffer::strided(k_cache.dtype(), shape,
                      {page_size * heads * row, head_major ? row : heads * row, head_major ? page_size * row : row, 1});
  for (std::int64_t i = 0; i < k_cache.size(); ++i) {
    result.set(i / dim * row + i % dim, k_cache[i]);
    result.set(i / dim * row + dim + i % dim, v_cache[i]);
  }
  return result;
}

void bind_halves(Tensors& tensors, const Buffer& rows, void* data) {
  openmsa_tensor half = rows.view();
  half.shape[3] /= 2;
  half.data = data;
  tensors.k_cache = half;
  half.data = static_cast<std::byte*>(data) + static_cast<std::size_t>(half.shape[3]) * openmsa_dtype_bytes(half.dtype);
  tensors.v_cache = half;
}

}  // namespace openmsa::test
