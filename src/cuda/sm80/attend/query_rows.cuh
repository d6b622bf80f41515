// Queries of a warp of the prompt kernels on their way into shared memory.
#pragma once

#include "cuda/sm80/attend/key_product.cuh"
#include "cuda/sm80/attend/params.h"

namespace openmsa::cuda::sm80::attend {

/// Puts a warp's rows of q into shared memory as fragments; to be followed by __syncwarp. Row i of this thread is that of
/// q_row(i) and query_head(i), and a product with it times scale_log2[i] is a score in units of log2.
template <class Product, class Row, class Head>
__device__ __forceinline__ void put_queries(const AttentionTensors& t, float k_scale, const SharedRows<Product>& q,
                                            float (&scale_log2)[2 * kWarpTiles], int lane, Row q_row, Head query_head) {
#pragma unroll
  for (int m = 0; m < kWarpTiles; ++m) {
    typename Product::Queries rows;
#pragma unroll
    for (int i = 2 * m; i < 2 * m + 2; ++i) {
      const std::int64_t row = q_row(i), head = query_head(i);
      const auto* const from =
          static_cast<const typename Product::Element*>(t.q.data) + row * t.q.strides[0] + head * t.q.strides[1];
      scale_log2[i] = t.scale_log2 * k_scale * Product::load_query(from, i % 2, rows, lane);
    }
    q.put(m, rows);
  }
}

}  // namespace openmsa::cuda::sm80::attend
