// The two products of attention between a tile of query rows and a kv_block, in fp32, or in bf16 with fp32 sums where
// queries and keys are bf16 and the CPU multiplies them. While one runs, the keys that the next will need are fetched.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>

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

/// Rows of one size, for the next product to fetch.
class FetchList {
 public:
  FetchList(core::Arena& arena, std::int64_t keys) : rows_(arena.take<const std::byte*>(keys + kMoreRows)) {}

  void begin(std::int64_t row_bytes) {
    count_ = 0;
    row_bytes_ = row_bytes;
  }
  void add(const KeySpan& keys) {
    for (std::int64_t j = 0; j < keys.count; ++j) rows_[count_++] = keys.rows.token(keys.begin + j);
  }
  /// Any number of bytes, as rows.
  void add(const void* data, std::int64_t bytes) {
    const auto* const row = static_cast<const std::byte*>(data);
    for (std::int64_t i = 0; i < bytes; i += row_bytes_) rows_[count_++] = row + i;
  }
  Ahead take() { return {rows_, std::exchange(count_, 0), row_bytes_}; }

 private:
  static constexpr std::int64_t kMoreRows = 5 * kMaxColumns;  // padded fp32 rows of columns, as rows of e4m3
  const std::byte** rows_;
  std::int64_t count_ = 0, row_bytes_ = 0;
};

/// Whether operands of these types are multiplied as they are, in pairs; dim is that of a row.
bool multiplies_in_pairs(const core::Plan& plan, openmsa_dtype key_dtype, std::int64_t dim);

/// Rows of q or index_q as ScoreProduct takes them.
class ScoreQueries {
 public:
  ScoreQueries(core::Arena& arena, std::int64_t dim, std::int64_t max_columns, bool in_pairs);

  void load(const openmsa_tensor& tensor, const core::Sequence& sequence, const Columns& columns, float scale);
  /// Rows of index_q, each rounded to e4m3 with a scale of its own.
  void load_fp8(const openmsa_tensor& index_q, const core::Sequence& sequence, const Columns& columns);

 private:
  friend class ScoreProduct;
  bool in_pairs_;
  QueryTile tile_;
  std::int64_t columns_ = 0;
  float scale_ = 1;
};

/// s[key][column] = scale * k q^T.
class ScoreProduct {
 public:
  ScoreProduct(core::Arena& arena, std::int64_t block_size, std::int64_t dim, bool in_pairs);

  void load_keys(const KeySpan& keys);
  FetchList& ahead() { return ahead_; }

  /// s [keys][ld], for the columns and their padding.
  void scores(const ScoreQueries& q, float* s, std::int64_t ld);
  /// top[column] = the column's largest score, NaN ignored.
  void column_max(const ScoreQueries& q, float* top);

 private:
  OperandOf<core::BFloat16> pairs();
  Operand operand();

  bool in_pairs_;
  KeyTile k_;
  std::int64_t keys_ = 0;
  FetchList ahead_;
};

/// pv[column] = sum_j p[j][column] v[j], or pv[column] += that sum when `accumulate`.
class ValueProduct {
 public:
  ValueProduct(core::Arena& arena, std::int64_t block_size, std::int64_t dim, bool in_pairs);

  void load(const KeySpan& keys);
  FetchList& ahead() { return ahead_; }

  /// p [keys][kMaxColumns] is used up; it is 0 past each column's limit. Where some columns see only part of the keys
  /// that leaves the sum as it is unless v holds Inf or NaN there; then each column stops at its limit.
  void multiply(float* p, std::int64_t columns, const float* limit, bool is_partial, float* pv, bool accumulate);

  std::int64_t width() const { return width_; }  // of a row of pv

 private:
  bool all_finite();
  void multiply_fp32(const float* p, std::int64_t columns, std::int64_t keys, float* pv, bool accumulate);
  void multiply_pairs(const float* p, std::int64_t columns, std::int64_t keys, float* pv, bool accumulate);

  bool in_pairs_;
  std::int64_t width_;
  KeyTile v_;
  core::BFloat16* paired_;  // [ceil(block_size / 2)][2 * width]
  core::BFloat16* last_;    // [2 * width]: a pair whose second key is out of sight
  std::int64_t keys_ = 0;
  std::optional<bool> is_finite_;  // of the values loaded, once it has been asked for
  FetchList ahead_;
};

}  // namespace openmsa::cpu
