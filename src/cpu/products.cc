#include "cpu/products.h"

#include <algorithm>

namespace openmsa::cpu {
namespace {

using core::BFloat16;

const BFloat16* as_pairs(const float* memory) { return reinterpret_cast<const BFloat16*>(memory); }

}  // namespace

bool multiplies_in_pairs(const core::Plan& plan, openmsa_dtype key_dtype, std::int64_t dim) {
  return plan.config.dtype == OPENMSA_BFLOAT16 && key_dtype == OPENMSA_BFLOAT16 && dim % kLanes == 0 &&
         pair_ops() != nullptr;
}

ScoreQueries::ScoreQueries(core::Arena& arena, std::int64_t dim, std::int64_t max_columns, bool in_pairs)
    : in_pairs_(in_pairs), tile_(arena, dim, max_columns) {}

void ScoreQueries::load(const openmsa_tensor& tensor, const core::Sequence& sequence, const Columns& columns,
                        float scale) {
  columns_ = columns.padded();
  if (in_pairs_) {
    tile_.load_pairs(tensor, sequence, columns);
    scale_ = scale;
  } else {
    tile_.load(tensor, sequence, columns, scale);
  }
}

void ScoreQueries::load_fp8(const openmsa_tensor& index_q, const core::Sequence& sequence, const Columns& columns) {
  columns_ = columns.padded();
  tile_.load_fp8(index_q, sequence, columns);
}

ScoreProduct::ScoreProduct(core::Arena& arena, std::int64_t block_size, std::int64_t dim, bool in_pairs)
    : in_pairs_(in_pairs), k_(arena, block_size, dim), ahead_(arena, block_size) {}

void ScoreProduct::load_keys(const KeySpan& keys) {
  keys_ = keys.count;
  if (in_pairs_) {
    k_.load_bf16(keys.rows, keys.begin, keys.count);
  } else {
    k_.load(keys.rows, keys.begin, keys.count);
  }
}

OperandOf<BFloat16> ScoreProduct::pairs() { return {k_.bf16, k_.ld, 2, ahead_.take()}; }
Operand ScoreProduct::operand() { return {k_.data, k_.ld, 1, ahead_.take()}; }

void ScoreProduct::scores(const ScoreQueries& q, float* s, std::int64_t ld) {
  const QueryTile& tile = q.tile_;
  if (in_pairs_) {
    pair_ops()->matmul(keys_, q.columns_, tile.dim / 2, pairs(), as_pairs(tile.columns), 2 * tile.columns_ld, s, ld,
                       q.scale_, false);
  } else {
    tile_ops().matmul(keys_, q.columns_, tile.dim, operand(), tile.columns, tile.columns_ld, s, ld, false);
  }
}

void ScoreProduct::column_max(const ScoreQueries& q, float* top) {
  const QueryTile& tile = q.tile_;
  if (in_pairs_) {
    pair_ops()->matmul_column_max(keys_, q.columns_, tile.dim / 2, pairs(), as_pairs(tile.columns), 2 * tile.columns_ld,
                                  top);
  } else {
    tile_ops().matmul_column_max(keys_, q.columns_, tile.dim, operand(), tile.columns, tile.columns_ld, top);
  }
}

ValueProduct::ValueProduct(core::Arena& arena, std::int64_t block_size, std::int64_t dim, bool in_pairs)
    : in_pairs_(in_pairs),
      width_(pad_lanes(dim)),
      v_(arena, block_size, dim),
      paired_(arena.take<BFloat16>(in_pairs ? core::ceil_div(block_size, 2) * 2 * width_ : 0)),
      last_(arena.take<BFloat16>(in_pairs ? 2 * width_ : 0)),
      ahead_(arena, block_size) {}

void ValueProduct::load(const KeySpan& keys) {
  keys_ = keys.count;
  is_finite_.reset();
  if (!in_pairs_) return v_.load(keys.rows, keys.begin, keys.count);
  const auto row = [&](std::int64_t j) { return reinterpret_cast<const BFloat16*>(keys.rows.token(keys.begin + j)); };
  for (std::int64_t j = 0; j < keys_; j += 2) {
    pair_ops()->pair_rows(row(j), j + 1 < keys_ ? row(j + 1) : nullptr, width_, paired_ + j * width_);
  }
}

bool ValueProduct::all_finite() {
  constexpr std::uint16_t kExponent = 0x7f80;
  if (is_finite_) return *is_finite_;
  is_finite_ = in_pairs_ ? std::all_of(paired_, paired_ + core::ceil_div(keys_, 2) * 2 * width_,
                                       [](BFloat16 x) { return (x.bits & kExponent) != kExponent; })
                         : tile_ops().all_finite(v_.data, v_.ld, keys_, width_);
  return *is_finite_;
}

void ValueProduct::multiply(float* p, std::int64_t columns, const float* limit, bool is_partial, float* pv,
                            bool accumulate) {
  if (in_pairs_) pair_ops()->pair_tile(p, kMaxColumns, keys_, pad_lanes(columns));
  const auto multiply = in_pairs_ ? &ValueProduct::multiply_pairs : &ValueProduct::multiply_fp32;
  if (!is_partial || all_finite()) return (this->*multiply)(p, columns, keys_, pv, accumulate);
  for (std::int64_t c = 0; c < columns; ++c) {
    (this->*multiply)(p + c, 1, static_cast<std::int64_t>(limit[c]), pv + c * width_, accumulate);
  }
}

void ValueProduct::multiply_fp32(const float* p, std::int64_t columns, std::int64_t keys, float* pv, bool accumulate) {
  tile_ops().matmul(columns, width_, keys, {p, 1, kMaxColumns, ahead_.take()}, v_.data, v_.ld, pv, width_, accumulate);
}

void ValueProduct::multiply_pairs(const float* p, std::int64_t columns, std::int64_t keys, float* pv, bool accumulate) {
  // All keys: the last of an odd number has a pair with zeros.
  const std::int64_t pairs = keys == keys_ ? core::ceil_div(keys, 2) : keys / 2;
  const OperandOf<BFloat16> left = {as_pairs(p), 2, 2 * kMaxColumns, ahead_.take()};
  pair_ops()->matmul(columns, width_, pairs, left, paired_, 2 * width_, pv, width_, 1, accumulate);
  if (2 * pairs >= keys) return;
  const BFloat16* whole = paired_ + pairs * 2 * width_;
  for (std::int64_t c = 0; c < width_; ++c) {
    last_[2 * c] = whole[2 * c];
    last_[2 * c + 1] = {0};
  }
  pair_ops()->matmul(columns, width_, 1, {left.data + pairs * left.column, 2, 2 * kMaxColumns, {}}, last_, 2 * width_,
                     pv, width_, 1, true);
}

}  // namespace openmsa::cpu
