#include "cuda/support/fused_cache.h"

#include <gtest/gtest.h>

#include "support/fused_rows.h"

namespace openmsa::test {

FusedCache::FusedCache(const TensorMap& caches, bool head_major)
    : rows_(fused_rows(caches.at("k_cache"), caches.at("v_cache"), head_major)), memory_(rows_.bytes().size()) {
  memory_.upload(rows_.bytes());
}

void FusedCache::bind(Tensors& tensors) const { bind_halves(tensors, rows_, memory_.data()); }

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
