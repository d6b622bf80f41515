// Attention of one warp: 16 (query, head) rows, with a running softmax, over keys in shared memory.
#pragma once

#include "cuda/sm80/attend/key_product.cuh"
#include "cuda/sm80/tile/softmax.cuh"

namespace openmsa::cuda::sm80::attend {

/// Keys in shared memory: tiles of k and v, and the scales of their keys.
struct KeysInShared {
  std::uint32_t k, v;
  const float* k_scale;  // nullptr: one for all
  const float* v_scale;
};

/// A thread has rows g and g + 8 (ptx/matrix.cuh).
template <class Product>
struct WarpAttention {
  static constexpr bool kIsQuantized = Product::kIsQuantized;

  float max[2] = {-INFINITY, -INFINITY};  // in units of log2
  float sum[2] = {0, 0};                  // of this thread's columns, times 2^kLift
  float unit = 0;                         // of o: the largest v_scale so far, where tokens have one each
  typename Product::Values o = {};

  /// Keys [key, key + kKeys) of the tiles, of which row i sees the first limit[i]; kIsMasked: they may be fewer than
  /// kKeys. scale_log2: of scores, for each row.
  template <int kKeys, bool kIsMasked>
  __device__ __forceinline__ void add(const typename Product::Queries& q, const KeysInShared& keys, int key,
                                      const int (&limit)[2], const float (&scale_log2)[2], int lane) {
    constexpr int kTiles = kKeys / 8;
    const int column = lane % 4 * 2;
    float s[kTiles][4] = {};
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) Product::add_scores(q, keys.k, key + n * 8, s[n], s[n + 1], lane);
    if (kIsQuantized && keys.k_scale != nullptr) {
#pragma unroll
      for (int i = 0; i < 4 * kTiles; ++i) s[i / 4][i % 4] *= keys.k_scale[key + i / 4 * 8 + column + i % 2];
    }
    float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int i = 0; i < 4 * kTiles; ++i) {
      float& x = s[i / 4][i % 4];
      const int row = i / 2 % 2;
      if (kIsMasked && i / 4 * 8 + column + i % 2 >= limit[row]) x = -INFINITY;
      top[row] = fmaxf(top[row], x);
    }
    float alpha[2], shift[2];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      alpha[row] = raise_max(max[row], quad_max(top[row]) * scale_log2[row], shift[row]);
      shift[row] -= Product::kLift;
      sum[row] *= alpha[row];
    }
#pragma unroll
    for (int i = 0; i < 4 * kTiles; ++i) {
      float& x = s[i / 4][i % 4];
      const int row = i / 2 % 2;
      x = exp2_approx(fmaf(x, scale_log2[row], -shift[row]));
      sum[row] += x;
    }
    if (kIsQuantized && keys.v_scale != nullptr) scale_probabilities<kKeys>(s, keys.v_scale + key + column, alpha);
    if (__any_sync(kFullWarp, alpha[0] != 1 || alpha[1] != 1)) {
#pragma unroll
      for (int i = 0; i < 4 * Product::kColumnTiles; ++i) o[i / 4][i % 4] *= alpha[i / 2 % 2];
    }
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      using Element = typename Product::Product;
      const std::uint32_t p[4] = {pack<Element>(s[n][0], s[n][1]), pack<Element>(s[n][2], s[n][3]),
                                  pack<Element>(s[n + 1][0], s[n + 1][1]), pack<Element>(s[n + 1][2], s[n + 1][3])};
      Product::add_values(p, keys.v, key + n * 8, o, lane);
    }
  }

  /// Makes sums those of whole rows and takes out what they and o were multiplied by. v_scale: of all values.
  __device__ __forceinline__ void finish(float v_scale) {
    constexpr float kDrop = kIsQuantized ? 0x1p-15f : 1;
    static_assert(!kIsQuantized || Product::kLift == 15);
#pragma unroll
    for (int row = 0; row < 2; ++row) sum[row] = quad_sum(sum[row]) * kDrop;
    if constexpr (kIsQuantized) {
      const float factor = kDrop * v_scale * (unit > 0 ? unit : 1);
#pragma unroll
      for (int i = 0; i < 4 * Product::kColumnTiles; ++i) o[i / 4][i % 4] *= factor;
    }
  }

  /// Logarithm of row i's sum of exponentials to the base 2; -inf where it saw nothing.
  __device__ __forceinline__ float lse_log2(int i) const { return sum[i] == 0 ? -INFINITY : max[i] + log2f(sum[i]); }
  __device__ __forceinline__ float inverse(int i) const { return sum[i] == 0 ? 0 : 1 / sum[i]; }

 private:
  /// Multiplies probabilities by the scales of their values, as shares of the largest so far, so that they keep to the
  /// range of fp16. From here on o counts in units of that; the sums of probabilities do not.
  template <int kKeys>
  __device__ __forceinline__ void scale_probabilities(float (&s)[kKeys / 8][4], const float* scales,
                                                      float (&alpha)[2]) {
    float largest = unit;
#pragma unroll
    for (int i = 0; i < kKeys / 4; ++i) largest = fmaxf(largest, scales[i / 2 * 8 + i % 2]);
    largest = quad_max(largest);
    const float inverse = largest > 0 ? 1 / largest : 0;
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) s[i / 4][i % 4] *= scales[i / 4 * 8 + i % 2] * inverse;
    alpha[0] *= unit * inverse;
    alpha[1] *= unit * inverse;
    unit = largest;
  }
};

}  // namespace openmsa::cuda::sm80::attend
