// The vector code of the CPU backend. Every stage is made of these few functions on small fp32 tiles in scratch memory;
// what calls them is plain C++.
//
// Orientation. A tile of scores is s[key][column]: keys are rows, and one column is one query row (a query of one
// head). So maxima, sums and exponentials over keys run down the columns, one column per SIMD lane, and no horizontal
// reduction is ever needed; keys and values are read where they lie, without a transpose.
//
// Reproducibility. Each result is computed in one fixed order, over keys or channels, that does not depend on which
// columns share a tile. Columns are padded to kLanes; what stands in padding columns is never read.
#pragma once

#include <openmsa/openmsa.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/dtype.h"

namespace openmsa::cpu {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Columns of a tile come in multiples of this many floats: the widest SIMD vector used.
inline constexpr std::int64_t kLanes = 16;
constexpr std::int64_t pad_lanes(std::int64_t columns) { return (columns + kLanes - 1) / kLanes * kLanes; }

/// Memory that is wanted next; what takes one fetches it into the caches while it computes.
struct Ahead {
  const std::byte* const* rows = nullptr;
  std::int64_t count = 0;
  std::int64_t row_bytes = 0;

  /// The part for steps [begin, end) of `steps`.
  Ahead part(std::int64_t begin, std::int64_t end, std::int64_t steps) const {
    const std::int64_t first = count * begin / steps;
    return {rows + first, count * end / steps - first, row_bytes};
  }
};

/// Whether that ends in the second-level cache: a first-level cache of 32 KiB keeps its room for what is worked on, and
/// Intel's processors read more memory at once so.
bool fetches_past_first_level();

/// The left operand of a product: element (i, p) is data[i * row + p * column].
template <class Element>
struct OperandOf {
  const Element* data;
  std::int64_t row;
  std::int64_t column;
  Ahead ahead = {};
};
using Operand = OperandOf<float>;

/// With so few query rows keys lie along the lanes of vectors, and a tile of scores is s[query row][key].
inline constexpr std::int64_t kFewRows = 8;

/// Running top-k lists, one per column: entry i of column j is (keys[i * ld + j], blocks[i * ld + j]), best first.
struct TopkColumns {
  std::int32_t* keys;  // core::score_key; kNoKey: no entry yet
  std::int32_t* blocks;
  std::int64_t ld;
  std::int64_t depth;
};
inline constexpr std::int32_t kNoKey = std::numeric_limits<std::int32_t>::min();

struct TileOps {
  /// c[i][j] = sum_p a(i,p) b[p][j] (+ c[i][j] when `accumulate`) for i < m, j < n, p < k; n is a multiple of kLanes.
  void (*matmul)(std::int64_t m, std::int64_t n, std::int64_t k, Operand a, const float* b, std::int64_t ldb, float* c,
                 std::int64_t ldc, bool accumulate);

  /// The same for b in bf16 or fp16, widened on the way, which few rows wait for no longer than for fp32.
  void (*matmul_widened)(std::int64_t m, std::int64_t n, std::int64_t k, Operand a, openmsa_dtype dtype,
                         const std::byte* b, std::int64_t ldb, float* c, std::int64_t ldc, bool accumulate);

  /// top[j] = max over i < m of sum_p a(i,p) b[p][j], NaN ignored; -inf when there is nothing else.
  void (*matmul_column_max)(std::int64_t m, std::int64_t n, std::int64_t k, Operand a, const float* b, std::int64_t ldb,
                            float* top);

  /// s[j][i] = sum_p a(i,p) q[j][p] for i < m, j < n <= kFewRows, p < k, a multiple of 4; in matmul's order, so with its
  /// bits. Rows of s have room for pad_lanes(m).
  void (*row_products)(std::int64_t m, std::int64_t n, std::int64_t k, Operand a, const float* q, std::int64_t ldq,
                       float* s, std::int64_t lds);

  /// top[j] = max over i < min(m, limit[j]) of s[i][j], NaN ignored; -inf when there is nothing else.
  void (*column_max)(const float* s, std::int64_t ld, std::int64_t m, std::int64_t n, const float* limit, float* top);

  /// The same of s[j][i], for j < n.
  void (*row_max)(const float* s, std::int64_t ld, std::int64_t m, std::int64_t n, const float* limit, float* top);

  /// One step of the online softmax. Column j sees its first limit[j] keys:
  ///   max' = max(max, max_i s),  alpha = exp(max - max'),  s = exp(s - max'),  sum = sum * alpha + sum_i s.
  /// A column that has seen nothing keeps max = -inf, sum = 0; s is 0 past the limit. NaN scores give NaN.
  void (*softmax_columns)(float* s, std::int64_t ld, std::int64_t m, std::int64_t n, const float* limit, float* max,
                          float* sum, float* alpha, Ahead ahead);

  /// The same of s[j][i], for j < n; sums over i go by lanes.
  void (*softmax_rows)(float* s, std::int64_t ld, std::int64_t m, std::int64_t n, const float* limit, float* max,
                       float* sum, float* alpha, Ahead ahead);

  /// s[i][j] = exp(s[i][j] - lse[j]) for i < limit[j], else 0; a column with lse = -inf becomes 0.
  void (*probabilities)(float* s, std::int64_t ld, std::int64_t m, std::int64_t n, const float* limit,
                        const float* lse);

  /// ds[i][j] = p[i][j] * (dp[i][j] - delta[j]), stored over dp. Where p is 0, ds is 0.
  void (*d_scores)(const float* p, float* dp, std::int64_t ld, std::int64_t m, std::int64_t n, const float* delta);

  /// The loss and its gradient for one tile of index scores s, given the teacher's probabilities p, for i < limit[j]:
  ///   log_p_idx = s - lse,  kl[j] += sum_i p (log p - log_p_idx),  s = weight[j] (exp(log_p_idx) - p), 0 past the
  ///   limit.
  void (*kl_columns)(const float* p, float* s, std::int64_t ld, std::int64_t m, std::int64_t n, const float* limit,
                     const float* lse, const float* weight, float* kl);

  /// s[i][j] = weight[j] (log p[i][j] - (s[i][j] - lse[j])) where p > 0 and i < limit[j], else 0: dKL/dP of the teacher.
  void (*teacher_columns)(const float* p, float* s, std::int64_t ld, std::int64_t m, std::int64_t n, const float* limit,
                          const float* lse, const float* weight);

  /// o[j] = o[j] * alpha + t[j] for j < n, a multiple of kLanes.
  void (*scale_add)(float* o, const float* t, float alpha, std::int64_t n);

  /// s[i][j] *= rows[i] columns[j] for i < m, j < n; a vector of factors may be nullptr: all are 1.
  void (*scale_tile)(float* s, std::int64_t ld, std::int64_t m, std::int64_t n, const float* rows,
                     const float* columns);

  /// Offers a kv_block to the lists of columns j < n with block < end[j], in ascending order of blocks: one of higher
  /// score takes its place, and the last entry is lost.
  void (*offer)(const float* score, std::int32_t block, const std::int32_t* end, std::int64_t n,
                const TopkColumns& lists);

  /// out[j][i] = in[i][j] for i < m, j < n; m a multiple of 16, n of 8.
  void (*transpose)(const float* in, std::int64_t ldi, std::int64_t m, std::int64_t n, float* out, std::int64_t ldo);

  /// Whether all values of an m x n tile are finite; n is a multiple of kLanes.
  bool (*all_finite)(const float* tile, std::int64_t ld, std::int64_t m, std::int64_t n);

  /// `count` elements of a storage type to fp32, times `scale`; rows of them, `from_bytes` apart, to rows `ld` apart; and
  /// back with one rounding.
  void (*widen)(openmsa_dtype dtype, const std::byte* from, float* to, std::int64_t count, float scale);
  void (*widen_rows)(openmsa_dtype dtype, const std::byte* from, std::int64_t from_bytes, std::int64_t rows, float* to,
                     std::int64_t ld, std::int64_t count, float scale, const Ahead& ahead);
  void (*narrow)(openmsa_dtype dtype, const float* from, std::byte* to, std::int64_t count);
};

/// The functions for the best instruction set of this machine.
const TileOps& tile_ops();

/// Pairs come in whole steps, which an instruction may take at once; and m elements padded to whole steps.
inline constexpr std::int64_t kPairsPerStep = 16;
constexpr std::int64_t pad_steps(std::int64_t m) {
  return (m + 2 * kPairsPerStep - 1) / (2 * kPairsPerStep) * (2 * kPairsPerStep);
}

/// Products of bf16 numbers with fp32 sums. A step of a sum is a pair of products, so that two neighbours in memory are
/// one step: of a key, two channels; of probabilities and values, two keys, for which pair_rows interleaves two rows.
struct PairOps {
  const char* name;          // of the instruction set
  std::int64_t speed;        // of a tile's products beside those in fp32, about
  std::int64_t row_speed;    // the same of row_products
  bool rows_have_same_bits;  // whether row_products has matmul's bits

  /// c[i][j] = scale * sum_p (a(i,p)[0] b[p][2j] + a(i,p)[1] b[p][2j+1]), the sum begun with c[i][j] when `accumulate`;
  /// for i < m, j < n, p < pairs; n is a multiple of kLanes, pairs of kPairsPerStep.
  void (*matmul)(std::int64_t m, std::int64_t n, std::int64_t pairs, OperandOf<core::BFloat16> a,
                 const core::BFloat16* b, std::int64_t ldb, float* c, std::int64_t ldc, float scale, bool accumulate);

  /// top[j] = max over i < m of that sum, NaN ignored; -inf when there is nothing else.
  void (*matmul_column_max)(std::int64_t m, std::int64_t n, std::int64_t pairs, OperandOf<core::BFloat16> a,
                            const core::BFloat16* b, std::int64_t ldb, float* top);

  /// s[j][i] = scale * sum_p (a(i,p)[0] q[j][2p] + a(i,p)[1] q[j][2p+1]) for i < m, j < n <= kFewRows, p < pairs; in
  /// order of p. Rows of s have room for pad_lanes(m).
  void (*row_products)(std::int64_t m, std::int64_t n, std::int64_t pairs, OperandOf<core::BFloat16> a,
                       const core::BFloat16* q, std::int64_t ldq, float* s, std::int64_t lds, float scale);

  /// The same for a in e4m3, widened without rounding.
  void (*row_products_e4m3)(std::int64_t m, std::int64_t n, std::int64_t pairs, OperandOf<core::Float8E4M3> a,
                            const core::BFloat16* q, std::int64_t ldq, float* s, std::int64_t lds, float scale);

  /// out[i][2j] = in[2i][j], out[i][2j+1] = in[2i+1][j], or 0 where there is no such row; for m rows of n columns, a multiple of
  /// kLanes.
  void (*pair_rows)(const core::BFloat16* in, std::int64_t ld, std::int64_t m, std::int64_t n, core::BFloat16* out,
                    const Ahead& ahead);

  /// The same for rows in e4m3, widened without rounding; n is a multiple of 32.
  void (*pair_rows_e4m3)(const core::Float8E4M3* in, std::int64_t ld, std::int64_t m, std::int64_t n,
                         core::BFloat16* out, const Ahead& ahead);

  /// The left operand of a product whose rows are the n columns of a tile of m rows, rounded to bf16, row i times
  /// factors[i] unless that is nullptr; a pair is two rows of the tile, and what is missing in whole steps is 0. `memory`
  /// has room for pad_steps(m) * n and holds the result.
  OperandOf<core::BFloat16> (*round_columns)(const float* tile, std::int64_t ld, std::int64_t m, std::int64_t n,
                                             const float* factors, core::BFloat16* memory);

  /// The left operand of a product whose rows are the m rows of a tile of n columns, rounded to bf16; a pair is two
  /// columns, and what is missing in whole steps is 0. `memory` has room for m * pad_steps(n) and holds the result.
  OperandOf<core::BFloat16> (*round_rows)(const float* tile, std::int64_t ld, std::int64_t m, std::int64_t n,
                                          core::BFloat16* memory);

  /// to[i][j] = from[i][j] without rounding, for m rows of n numbers, a multiple of 32; ld is that of `from`.
  void (*widen_e4m3)(const core::Float8E4M3* from, std::int64_t ld, std::int64_t m, std::int64_t n, core::BFloat16* to,
                     const Ahead& ahead);
};

/// The fastest on this CPU; nullptr where no such products are faster than those in fp32.
const PairOps* pair_ops();

/// For tests: all that this CPU has, best first; one of them, or nullptr, for all that follows.
std::vector<const PairOps*> all_pair_ops();
void use_pair_ops(const PairOps* ops);

/// In x86-64's vectors (AVX512-BF16) and in its tiles (AMX-BF16); nullptr where this CPU has them not.
const PairOps* vector_pair_ops();
const PairOps* tile_pair_ops();

}  // namespace openmsa::cpu
