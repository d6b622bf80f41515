// Attention of one warp: tiles of 16 (query, head) rows, with a running softmax, over keys in shared memory.
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

/// A thread has rows g and g + 8 of each tile (ptx/matrix.cuh): row i is half i % 2 of tile i / 2.
template <class Product, int kRowTiles>
struct WarpAttention {
  static constexpr bool kIsQuantized = Product::kIsQuantized;
  static constexpr int kRows = 2 * kRowTiles;
  /// Scores may exceed `max` by so much before it is raised and what was added up is rescaled; in units of log2. bf16 and
  /// fp16 hold probabilities of 2^kSlack as well as those of 1; lifted ones leave no room in fp16.
  static constexpr float kSlack = kIsQuantized ? 0 : 8;

  float max[kRows];  // in units of log2
  float sum[kRows];  // of this thread's columns, times 2^kLift
  float unit = 0;    // of o: the largest v_scale so far, where tokens have one each
  typename Product::Values o[kRowTiles] = {};

  __device__ __forceinline__ WarpAttention() {
#pragma unroll
    for (int row = 0; row < kRows; ++row) max[row] = -INFINITY, sum[row] = 0;
  }

  /// Keys [key, key + kKeys) of the tiles, of which row i sees the first limit[i]; kIsMasked: they may be fewer than
  /// kKeys. scale_log2: of scores, for each row.
  template <int kKeys, bool kIsMasked, class Rows>
  __device__ __forceinline__ void add(const Rows& q, const KeysInShared& keys, int key, const int (&limit)[kRows],
                                      const float (&scale_log2)[kRows], int lane) {
    constexpr int kTiles = kKeys / 8;
    const int column = lane % 4 * 2;
    float s[kRowTiles][kTiles][4] = {};
    Product::add_scores(q, keys.k, key, s, lane);
    if (kIsQuantized && keys.k_scale != nullptr) {
#pragma unroll
      for (int i = 0; i < 2 * kTiles; ++i) {
        const float k_scale = keys.k_scale[key + i / 2 * 8 + column + i % 2];
#pragma unroll
        for (int row = 0; row < kRows; ++row) score(s, row, i) *= k_scale;
      }
    }
    float alpha[kRows], shift[kRows];
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      float top = -INFINITY;
#pragma unroll
      for (int i = 0; i < 2 * kTiles; ++i) {
        float& x = score(s, row, i);
        if (kIsMasked && i / 2 * 8 + column + i % 2 >= limit[row]) x = -INFINITY;
        top = fmaxf(top, x);
      }
      alpha[row] = raise_max(max[row], quad_max(top) * scale_log2[row], shift[row], kSlack);
      shift[row] -= Product::kLift;
      sum[row] *= alpha[row];
    }
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
#pragma unroll
      for (int i = 0; i < 2 * kTiles; ++i) {
        float& x = score(s, row, i);
        x = exp2_approx(fmaf(x, scale_log2[row], -shift[row]));
        sum[row] += x;
      }
    }
    if (kIsQuantized && keys.v_scale != nullptr) scale_probabilities(s, keys.v_scale + key + column, alpha);
    bool is_raised = false;
#pragma unroll
    for (int row = 0; row < kRows; ++row) is_raised |= alpha[row] != 1;
    if (__any_sync(kFullWarp, is_raised)) {
#pragma unroll
      for (int row = 0; row < kRows; ++row) scale_row(row, alpha[row]);
    }
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      std::uint32_t p[kRowTiles][4];
#pragma unroll
      for (int i = 0; i < 4 * kRowTiles; ++i) {
        const float* const two = &s[i / 4][n + i % 4 / 2][i % 2 * 2];
        p[i / 4][i % 4] = pack<typename Product::Product>(two[0], two[1]);
      }
      Product::add_values(p, keys.v, key + n * 8, o, lane);
    }
  }

  /// Makes sums those of whole rows and takes out what they and o were multiplied by. v_scale: of all values.
  __device__ __forceinline__ void finish(float v_scale) {
    constexpr float kDrop = kIsQuantized ? 0x1p-15f : 1;
    static_assert(!kIsQuantized || Product::kLift == 15);
    const float factor = kDrop * v_scale * (unit > 0 ? unit : 1);
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      sum[row] = quad_sum(sum[row]) * kDrop;
      if (kIsQuantized) scale_row(row, factor);
    }
  }

  /// Logarithm of row i's sum of exponentials to the base 2; -inf where it saw nothing.
  __device__ __forceinline__ float lse_log2(int i) const { return sum[i] == 0 ? -INFINITY : max[i] + log2f(sum[i]); }
  __device__ __forceinline__ float inverse(int i) const { return sum[i] == 0 ? 0 : 1 / sum[i]; }

  /// Row `row` of o times `factor`.
  __device__ __forceinline__ void scale_row(int row, float factor) {
#pragma unroll
    for (int i = 0; i < 2 * Product::kColumnTiles; ++i) o[row / 2][i / 2][row % 2 * 2 + i % 2] *= factor;
  }

 private:
  /// The i-th of this thread's scores of a row.
  template <int kTiles>
  static __device__ __forceinline__ float& score(float (&s)[kRowTiles][kTiles][4], int row, int i) {
    return s[row / 2][i / 2][row % 2 * 2 + i % 2];
  }

  /// Multiplies probabilities by the scales of their values, as shares of the largest so far, so that they keep to the
  /// range of fp16. From here on o counts in units of that; the sums of probabilities do not.
  template <int kTiles>
  __device__ __forceinline__ void scale_probabilities(float (&s)[kRowTiles][kTiles][4], const float* scales,
                                                      float (&alpha)[kRows]) {
    float largest = unit;
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) largest = fmaxf(largest, scales[i / 2 * 8 + i % 2]);
    largest = quad_max(largest);
    const float inverse = largest > 0 ? 1 / largest : 0;
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) {
      const float share = scales[i / 2 * 8 + i % 2] * inverse;
#pragma unroll
      for (int row = 0; row < kRows; ++row) score(s, row, i) *= share;
    }
#pragma unroll
    for (int row = 0; row < kRows; ++row) alpha[row] *= unit * inverse;
    unit = largest;
  }
};

}  // namespace openmsa::cuda::sm80::attend
