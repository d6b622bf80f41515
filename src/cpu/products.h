// The products of attention and its gradients between a tile of query rows and a kv_block, in fp32, or in bf16 with fp32
// sums where bf16 holds queries and keys and the CPU multiplies it fast. While one runs, memory that is wanted next is
// fetched.
#pragma once

#include <cstdint>
#include <optional>

#include "core/arena.h"
#include "core/problem.h"
#include "cpu/columns.h"
#include "cpu/tile/tile.h"

namespace openmsa::cpu {

/// Tokens [begin, begin + count) of some keys or values; none when count is 0.
struct KeySpan {
  core::KeyRows rows;
  std::int64_t begin = 0;
  std::int64_t count = 0;
};

/// Rows of one size that are wanted next, given out in parts to what computes meanwhile.
class FetchList {
 public:
  FetchList(core::Arena& arena, std::int64_t keys) : rows_(arena.take<const std::byte*>(2 * keys + kMoreRows)) {}

  void begin(std::int64_t row_bytes) {
    count_ = 0;
    row_bytes_ = row_bytes;
  }
  void add(const KeySpan& keys) {
    for_each_run(keys.rows, keys.begin, keys.count, [&](std::int64_t, std::int64_t tokens, const std::byte* token) {
      for (std::int64_t i = 0; i < tokens; ++i) rows_[count_++] = token + i * keys.rows.token_bytes;
    });
  }
  /// Any number of bytes, as rows.
  void add(const void* data, std::int64_t bytes) {
    const auto* const row = static_cast<const std::byte*>(data);
    for (std::int64_t i = 0; i < bytes; i += row_bytes_) rows_[count_++] = row + i;
  }

  /// All that is left, or `part` of it for every `rest` that stays.
  Ahead take() { return take(1, 0); }
  Ahead take(std::int64_t part, std::int64_t rest) {
    const std::int64_t count = count_ * part / (part + rest);
    count_ -= count;
    return {rows_ + count_, count, row_bytes_};
  }

 private:
  static constexpr std::int64_t kMoreRows =
      10 * kMaxColumns;  // padded fp32 rows and queries of columns, as rows of e4m3
  const std::byte** rows_;
  std::int64_t count_ = 0, row_bytes_ = 0;
};

/// Whether operands of these types are multiplied in pairs: bf16 as it is, and e4m3, which bf16 holds without rounding; dim
/// is that of a row.
bool multiplies_in_pairs(openmsa_dtype query_dtype, openmsa_dtype key_dtype, std::int64_t dim);
/// The same for the rows of the main branch, and of the index branch, whose queries may be rounded to e4m3 beside such
/// keys.
inline bool multiplies_in_pairs(const core::Plan& plan) {
  return multiplies_in_pairs(plan.config.dtype, plan.config.kv_dtype, plan.config.head_dim);
}
inline bool multiplies_index_in_pairs(const core::Plan& plan) {
  const openmsa_dtype keys = plan.config.index_dtype;
  const bool is_rounded = plan.has_fp8_index() && plan.config.index_q_rounding != OPENMSA_INDEX_Q_EXACT;
  return multiplies_in_pairs(is_rounded ? keys : plan.config.dtype, keys, plan.config.index_dim);
}

/// Of products with them, and of those of few rows, beside those in fp32.
inline std::int64_t product_speed(bool in_pairs) { return in_pairs ? pair_ops()->speed : 1; }
inline std::int64_t row_product_speed(bool in_pairs) { return in_pairs ? pair_ops()->row_speed : 1; }

/// Rows of q, index_q or d_o as ScoreProduct takes them; d_o in fp32 is rounded where products are in pairs.
class ScoreQueries {
 public:
  ScoreQueries(core::Arena& arena, std::int64_t dim, std::int64_t max_columns, bool in_pairs);

  void load(const openmsa_tensor& tensor, const core::Sequence& sequence, const Columns& columns, float scale);
  /// Rows of index_q, rounded to e4m3: each with a scale of its own, or as they are.
  void load_fp8(const openmsa_tensor& index_q, const core::Sequence& sequence, const Columns& columns, bool is_scaled);

  /// Of the rows as they are loaded: 1 where they are scaled already.
  float scale() const { return scale_; }

 private:
  friend class ScoreProduct;
  friend class QueryProduct;
  bool in_pairs_;
  QueryTile tile_;
  float* column_scales_;   // of e4m3 in pairs
  std::int64_t size_ = 0;  // columns
  float scale_ = 1;
  bool has_column_scales_ = false;
};

/// `count` of them; nullptr from a measuring arena.
ScoreQueries* take_queries(core::Arena& arena, std::int64_t count, std::int64_t dim, std::int64_t max_columns,
                           bool in_pairs);

/// s[key][column] = scale * k q^T, or s[column][key] for few columns.
class ScoreProduct {
 public:
  ScoreProduct(core::Arena& arena, std::int64_t block_size, std::int64_t dim, bool in_pairs);

  /// Fetches `ahead` if the keys are not multiplied where they lie.
  void load_keys(const KeySpan& keys, const Ahead& ahead = {});
  /// The same for row_scores of few columns alone, where that widens the keys itself; returns whether it does.
  bool load_keys_for_rows(const KeySpan& keys);
  /// Whether a score has a factor of its key: then there is no column_max.
  bool has_scales() const { return has_scales_; }

  /// s [keys][ld], for the columns and their padding.
  void scores(const ScoreQueries& q, float* s, std::int64_t ld, const Ahead& ahead = {}) const;
  /// Whether there are so few columns that row_scores takes less time.
  bool has_few_columns(const ScoreQueries& q) const { return q.size_ <= kFewRows; }
  /// Whether those are the same bits.
  bool has_exact_row_scores() const { return !in_pairs_ || pair_ops()->rows_have_same_bits; }
  /// The scores as s [columns][ld], ld being a multiple of kLanes.
  void row_scores(const ScoreQueries& q, float* s, std::int64_t ld, const Ahead& ahead = {}) const;
  /// top[column] = the column's largest score, NaN ignored.
  void column_max(const ScoreQueries& q, float* top, const Ahead& ahead = {}) const;

 private:
  bool in_pairs_;
  KeyTile k_;
  float* scales_;  // of e4m3 in pairs
  std::int64_t keys_ = 0;
  bool has_scales_ = false;
  bool has_codes_ = false;  // and nothing else
};

/// pv[column] = sum_j p[j][column] v[j], or pv[column] += that sum when `accumulate`.
class ValueProduct {
 public:
  ValueProduct(core::Arena& arena, std::int64_t block_size, std::int64_t dim, bool in_pairs);

  void load(const KeySpan& keys, const Ahead& ahead = {});
  /// The same for multiply_rows alone, where that widens the values itself; returns whether it does.
  bool load_for_rows(const KeySpan& keys);

  /// p [keys][kMaxColumns] is 0 past each column's limit. Where some columns see only part of the keys
  /// that leaves the sum as it is unless v holds Inf or NaN there; then each column stops at its limit.
  void multiply(const float* p, std::int64_t columns, const float* limit, bool is_partial, float* pv, bool accumulate,
                const Ahead& ahead = {});

  /// The same for p [columns][ld], a row of which has room for the keys in whole steps.
  void multiply_rows(float* p, std::int64_t ld, std::int64_t columns, const float* limit, bool is_partial, float* pv,
                     bool accumulate, const Ahead& ahead = {});

  std::int64_t width() const { return width_; }  // of a row of pv

 private:
  bool all_finite();
  template <class Left>
  void multiply_seen(Left left, std::int64_t columns, const float* limit, bool is_partial, float* pv, bool accumulate,
                     const Ahead& ahead);
  void multiply_left(Operand p, std::int64_t columns, std::int64_t keys, float* pv, bool accumulate) const;
  void multiply_left(OperandOf<core::BFloat16> p, std::int64_t columns, std::int64_t keys, float* pv,
                     bool accumulate) const;

  bool in_pairs_;
  std::int64_t width_;
  KeyTile v_;
  core::BFloat16* paired_;   // [ceil(block_size / 2)][2 * width]
  core::BFloat16* rounded_;  // what round_columns makes of p
  float* scales_;            // of e4m3 in pairs
  bool has_scales_ = false;
  core::BFloat16* last_;  // [2 * width]: a pair whose second key is out of sight
  std::int64_t keys_ = 0;
  openmsa_dtype halves_dtype_{};
  bool has_halves_ = false;
  std::optional<bool> is_finite_;  // of the values loaded, once it has been asked for
};

/// sums[j] += sum_column factors[j][column] q[column]: the gradients of keys.
class QueryProduct {
 public:
  QueryProduct(core::Arena& arena, std::int64_t block_size, std::int64_t dim, bool in_pairs);

  /// factors [keys][kMaxColumns] is 0 past each column's limit. Where some columns see only part of the keys that leaves
  /// the sum as it is unless q holds Inf or NaN there; then each key's sum begins with the first column that sees it, for
  /// columns are of ascending queries. sums is [keys][width].
  void add(const ScoreQueries& q, const float* factors, std::int64_t keys, std::int64_t columns, const float* limit,
           bool is_partial, float* sums);

 private:
  void add_fp32(const QueryTile& q, const float* factors, std::int64_t keys, std::int64_t columns, const float* limit,
                bool is_partial, float* sums) const;
  void add_pairs(const QueryTile& q, const float* factors, std::int64_t keys, std::int64_t columns, const float* limit,
                 bool is_partial, float* sums) const;

  bool in_pairs_;
  std::int64_t width_;
  core::BFloat16* paired_;   // [kMaxColumns / 2][2 * width]
  core::BFloat16* seen_;     // the same, without the columns that do not see a key
  core::BFloat16* rounded_;  // [block_size][kMaxColumns]
};

}  // namespace openmsa::cpu
