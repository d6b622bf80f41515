#include "cuda/support/fused_cache.h"

#include <gtest/gtest.h>

namespace openmsa::test {
namespace {

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

}  // namespace

FusedCache::FusedCache(const TensorMap& caches, bool head_major)
    : rows_(fused_rows(caches.at("k_cache"), caches.at("v_cache"), head_major)), memory_(rows_.bytes().size()) {
  memory_.upload(rows_.bytes());
}

void FusedCache::bind(Tensors& tensors) const {
  openmsa_tensor half = rows_.view();
  half.shape[3] /= 2;
  half.data = memory_.data();
  tensors.k_cache = half;
  half.data = memory_.data() + static_cast<std::size_t>(half.shape[3]) * openmsa_dtype_bytes(half.dtype);
  tensors.v_cache = half;
}

TensorMap FusedCache::separate() const {
  EXPECT_TRUE(memory_.is_fenced()) << "written past the ends of a fused cache";
  Buffer rows = rows_;
  rows.assign_bytes(memory_.download());
  Shape shape = rows.shape();
  const std::int64_t dim = shape[3] /= 2;
  Buffer k_cache(rows.dtype(), shape), v_cache = k_cache;
  for (std::int64_t i = 0; i < k_cache.size(); ++i) {
    k_cache.set(i, rows[i / dim * 2 * dim + i % dim]);
    v_cache.set(i, rows[i / dim * 2 * dim + dim + i % dim]);
  }
  return {{"k_cache", k_cache}, {"v_cache", v_cache}};
}

}  // namespace openmsa::test
