#include "cpu/products.h"

#include <algorithm>

namespace openmsa::cpu {
namespace {

using core::BFloat16;

const BFloat16* as_pairs(const float* memory) { return reinterpret_cast<const BFloat16*>(memory); }

bool are_finite(const BFloat16* begin, const BFloat16* end) {
  constexpr std::uint16_t kExponent = 0x7f80;
  return std::all_of(begin, end, [](BFloat16 x) { return (x.bits & kExponent) != kExponent; });
}

/// The first column that sees key j.
std::int64_t first_to_see(const float* limit, std::int64_t columns, std::int64_t j) {
  return std::find_if(limit, limit + columns, [=](float keys) { return static_cast<float>(j) < keys; }) - limit;
}

}  // namespace

bool multiplies_in_pairs(openmsa_dtype query_dtype, openmsa_dtype key_dtype, std::int64_t dim) {
  const auto fits = [](openmsa_dtype dtype) { return dtype == OPENMSA_BFLOAT16 || dtype == OPENMSA_FLOAT8_E4M3; };
  return fits(query_dtype) && fits(key_dtype) && dim % (2 * kPairsPerStep) == 0 && pair_ops() != nullptr;
}

ScoreQueries::ScoreQueries(core::Arena& arena, std::int64_t dim, std::int64_t max_columns, bool in_pairs)
    : in_pairs_(in_pairs),
      tile_(arena, dim, max_columns),
      column_scales_(arena.take<float>(in_pairs ? pad_lanes(max_columns) : 0)) {}

void ScoreQueries::load(const openmsa_tensor& tensor, const core::Sequence& sequence, const Columns& columns,
                        float scale) {
  size_ = columns.size();
  if (in_pairs_) {
    tile_.load_pairs(tensor, sequence, columns);
    scale_ = scale;
  } else {
    tile_.load(tensor, sequence, columns, scale);
  }
}

void ScoreQueries::load_fp8(const openmsa_tensor& index_q, const core::Sequence& sequence, const Columns& columns,
                            bool is_scaled) {
  size_ = columns.size();
  if (in_pairs_) {
    tile_.load_fp8_pairs(index_q, sequence, columns, is_scaled ? column_scales_ : nullptr);
    has_column_scales_ = is_scaled;
  } else {
    tile_.load_fp8(index_q, sequence, columns, is_scaled);
  }
}

ScoreQueries* take_queries(core::Arena& arena, std::int64_t count, std::int64_t dim, std::int64_t max_columns,
                           bool in_pairs) {
  auto* const queries = arena.take<ScoreQueries>(count);
  for (std::int64_t i = 0; i < count; ++i) {
    const ScoreQueries one(arena, dim, max_columns, in_pairs);
    if (queries != nullptr) queries[i] = one;
  }
  return queries;
}

ScoreProduct::ScoreProduct(core::Arena& arena, std::int64_t block_size, std::int64_t dim, bool in_pairs)
    : in_pairs_(in_pairs), k_(arena, block_size, dim), scales_(arena.take<float>(in_pairs ? block_size : 0)) {}

bool ScoreProduct::load_keys_for_rows(const KeySpan& keys) {
  has_codes_ = in_pairs_ && k_.load_codes(keys.rows, keys.begin, keys.count, scales_);
  keys_ = keys.count;
  has_scales_ = keys.rows.scales != nullptr;
  return has_codes_;
}

void ScoreProduct::load_keys(const KeySpan& keys, const Ahead& ahead) {
  keys_ = keys.count;
  has_codes_ = false;
  if (in_pairs_) {
    has_scales_ = k_.load_bf16(keys.rows, keys.begin, keys.count, scales_, ahead);
  } else {
    k_.load(keys.rows, keys.begin, keys.count, ahead);
  }
}

void ScoreProduct::scores(const ScoreQueries& q, float* s, std::int64_t ld, const Ahead& ahead) const {
  const QueryTile& tile = q.tile_;
  if (in_pairs_) {
    pair_ops()->matmul(keys_, pad_lanes(q.size_), tile.dim / 2, {k_.bf16, k_.ld, 2, ahead}, as_pairs(tile.columns),
                       2 * tile.columns_ld, s, ld, q.scale_, false);
    if (!has_scales_ && !q.has_column_scales_) return;
    tile_ops().scale_tile(s, ld, keys_, pad_lanes(q.size_), has_scales_ ? scales_ : nullptr,
                          q.has_column_scales_ ? q.column_scales_ : nullptr);
  } else {
    tile_ops().matmul(keys_, pad_lanes(q.size_), tile.dim, {k_.data, k_.ld, 1, ahead}, tile.columns, tile.columns_ld, s,
                      ld, false);
  }
}

void ScoreProduct::row_scores(const ScoreQueries& q, float* s, std::int64_t ld, const Ahead& ahead) const {
  const QueryTile& tile = q.tile_;
  if (in_pairs_) {
    const auto multiply = [&](auto product, auto k) {
      product(keys_, q.size_, tile.dim / 2, k, as_pairs(tile.rows), 2 * tile.rows_ld, s, ld, q.scale_);
    };
    if (has_codes_) {
      multiply(pair_ops()->row_products_e4m3, OperandOf<core::Float8E4M3>{k_.codes, k_.ld, 2, ahead});
    } else {
      multiply(pair_ops()->row_products, OperandOf<BFloat16>{k_.bf16, k_.ld, 2, ahead});
    }
    if (!has_scales_ && !q.has_column_scales_) return;
    tile_ops().scale_tile(s, ld, q.size_, pad_lanes(keys_), q.has_column_scales_ ? q.column_scales_ : nullptr,
                          has_scales_ ? scales_ : nullptr);
  } else {
    tile_ops().row_products(keys_, q.size_, tile.dim, {k_.data, k_.ld, 1, ahead}, tile.rows, tile.rows_ld, s, ld);
  }
}

void ScoreProduct::column_max(const ScoreQueries& q, float* top, const Ahead& ahead) const {
  const QueryTile& tile = q.tile_;
  if (in_pairs_) {
    pair_ops()->matmul_column_max(keys_, pad_lanes(q.size_), tile.dim / 2, {k_.bf16, k_.ld, 2, ahead},
                                  as_pairs(tile.columns), 2 * tile.columns_ld, top);
    if (q.has_column_scales_)
      tile_ops().scale_tile(top, 0, 1, pad_lanes(q.size_), nullptr, q.column_scales_);  // not negative
  } else {
    tile_ops().matmul_column_max(keys_, pad_lanes(q.size_), tile.dim, {k_.data, k_.ld, 1, ahead}, tile.columns,
                                 tile.columns_ld, top);
  }
}

ValueProduct::ValueProduct(core::Arena& arena, std::int64_t block_size, std::int64_t dim, bool in_pairs)
    : in_pairs_(in_pairs),
      width_(pad_lanes(dim)),
      v_(arena, block_size, dim),
      paired_(arena.take<BFloat16>(in_pairs ? pad_steps(block_size) * width_ : 0)),
      rounded_(arena.take<BFloat16>(in_pairs ? pad_steps(block_size) * kMaxColumns : 0)),
      scales_(arena.take<float>(in_pairs ? block_size : 0)),
      last_(arena.take<BFloat16>(in_pairs ? kPairsPerStep * 2 * width_ : 0)) {}

void ValueProduct::load(const KeySpan& keys, const Ahead& ahead) {
  keys_ = keys.count;
  has_halves_ = false;
  is_finite_.reset();
  if (!in_pairs_) return v_.load(keys.rows, keys.begin, keys.count, ahead);
  has_scales_ = keys.rows.scales != nullptr;
  if (v_.load_codes(keys.rows, keys.begin, keys_, scales_)) {
    pair_ops()->pair_rows_e4m3(v_.codes, v_.ld, keys_, width_, paired_, ahead);
  } else {
    v_.load_bf16(keys.rows, keys.begin, keys_, scales_, {});
    pair_ops()->pair_rows(v_.bf16, v_.ld, keys_, width_, paired_, ahead);
  }
  std::fill(paired_ + core::ceil_div(keys_, 2) * 2 * width_, paired_ + pad_steps(keys_) * width_, BFloat16{0});
}

bool ValueProduct::load_for_rows(const KeySpan& keys) {
  has_halves_ = row_product_speed(in_pairs_) == 1 && v_.load_halves(keys.rows, keys.begin, keys.count);
  keys_ = keys.count;
  halves_dtype_ = keys.rows.dtype;
  is_finite_ = false;  // not looked at: columns that see only part of them go one by one
  return has_halves_;
}

bool ValueProduct::all_finite() {
  if (is_finite_) return *is_finite_;
  is_finite_ = in_pairs_ ? are_finite(paired_, paired_ + pad_steps(keys_) * width_)
                         : tile_ops().all_finite(v_.data, v_.ld, keys_, width_);
  return *is_finite_;
}

template <class Left>
void ValueProduct::multiply_seen(Left left, std::int64_t columns, const float* limit, bool is_partial, float* pv,
                                 bool accumulate, const Ahead& ahead) {
  if (!is_partial || all_finite()) {
    left.ahead = ahead;
    return multiply_left(left, columns, keys_, pv, accumulate);
  }
  for (std::int64_t c = 0; c < columns; ++c) {
    multiply_left(left, 1, static_cast<std::int64_t>(limit[c]), pv + c * width_, accumulate);
    left.data += left.row;
  }
}

void ValueProduct::multiply(const float* p, std::int64_t columns, const float* limit, bool is_partial, float* pv,
                            bool accumulate, const Ahead& ahead) {
  if (in_pairs_) {
    const float* const factors = has_scales_ ? scales_ : nullptr;
    const OperandOf<BFloat16> rounded =
        pair_ops()->round_columns(p, kMaxColumns, keys_, pad_lanes(columns), factors, rounded_);
    multiply_seen(rounded, columns, limit, is_partial, pv, accumulate, ahead);
  } else {
    multiply_seen(Operand{p, 1, kMaxColumns}, columns, limit, is_partial, pv, accumulate, ahead);
  }
}

void ValueProduct::multiply_rows(float* p, std::int64_t ld, std::int64_t columns, const float* limit, bool is_partial,
                                 float* pv, bool accumulate, const Ahead& ahead) {
  if (in_pairs_ && !has_halves_) {
    if (has_scales_) tile_ops().scale_tile(p, ld, columns, pad_lanes(keys_), nullptr, scales_);
    const OperandOf<BFloat16> rounded = pair_ops()->round_rows(p, ld, columns, keys_, rounded_);
    multiply_seen(rounded, columns, limit, is_partial, pv, accumulate, ahead);
  } else {
    multiply_seen(Operand{p, ld, 1}, columns, limit, is_partial, pv, accumulate, ahead);
  }
}

void ValueProduct::multiply_left(Operand p, std::int64_t columns, std::int64_t keys, float* pv, bool accumulate) const {
  if (has_halves_) {
    return tile_ops().matmul_widened(columns, width_, keys, p, halves_dtype_, v_.halves, v_.ld, pv, width_, accumulate);
  }
  tile_ops().matmul(columns, width_, keys, p, v_.data, v_.ld, pv, width_, accumulate);
}

void ValueProduct::multiply_left(OperandOf<BFloat16> p, std::int64_t columns, std::int64_t keys, float* pv,
                                 bool accumulate) const {
  const std::int64_t pairs = (keys == keys_ ? pad_steps(keys) : keys / (2 * kPairsPerStep) * (2 * kPairsPerStep)) / 2;
  pair_ops()->matmul(columns, width_, pairs, p, paired_, 2 * width_, pv, width_, 1, accumulate);
  const std::int64_t rest = keys - 2 * pairs;
  if (rest <= 0) return;
  const BFloat16* const from = paired_ + pairs * 2 * width_;
  for (std::int64_t i = 0; i < kPairsPerStep * 2 * width_; ++i) {
    const std::int64_t key = i / (2 * width_) * 2 + i % 2;
    last_[i] = key < rest ? from[i] : BFloat16{0};
  }
  pair_ops()->matmul(columns, width_, kPairsPerStep, {p.data + pairs * p.column, p.row, p.column}, last_, 2 * width_,
                     pv, width_, 1, true);
}

QueryProduct::QueryProduct(core::Arena& arena, std::int64_t block_size, std::int64_t dim, bool in_pairs)
    : in_pairs_(in_pairs),
      width_(pad_lanes(dim)),
      paired_(arena.take<BFloat16>(in_pairs ? kMaxColumns * width_ : 0)),
      seen_(arena.take<BFloat16>(in_pairs ? kMaxColumns * width_ : 0)),
      rounded_(arena.take<BFloat16>(in_pairs ? block_size * kMaxColumns : 0)) {}

void QueryProduct::add(const ScoreQueries& q, const float* factors, std::int64_t keys, std::int64_t columns,
                       const float* limit, bool is_partial, float* sums) {
  const auto add = in_pairs_ ? &QueryProduct::add_pairs : &QueryProduct::add_fp32;
  (this->*add)(q.tile_, factors, keys, columns, limit, is_partial, sums);
}

void QueryProduct::add_fp32(const QueryTile& q, const float* factors, std::int64_t keys, std::int64_t columns,
                            const float* limit, bool is_partial, float* sums) const {
  const auto add = [&](std::int64_t key, std::int64_t count, std::int64_t first) {
    tile_ops().matmul(count, width_, columns - first, {factors + key * kMaxColumns + first, kMaxColumns, 1},
                      q.rows + first * width_, width_, sums + key * width_, width_, true);
  };
  if (!is_partial || tile_ops().all_finite(q.rows, width_, columns, width_)) return add(0, keys, 0);
  for (std::int64_t j = 0; j < keys; ++j) add(j, 1, first_to_see(limit, columns, j));
}

void QueryProduct::add_pairs(const QueryTile& q, const float* factors, std::int64_t keys, std::int64_t columns,
                             const float* limit, bool is_partial, float* sums) const {
  const std::int64_t padded = pad_steps(columns), step = 2 * width_;  // rows of a pair's two columns, interleaved
  pair_ops()->pair_rows(as_pairs(q.rows), 2 * q.rows_ld, columns, width_, paired_, {});
  std::fill(paired_ + core::ceil_div(columns, 2) * step, paired_ + padded * width_, BFloat16{0});
  const OperandOf<BFloat16> left = pair_ops()->round_rows(factors, kMaxColumns, keys, columns, rounded_);
  const auto add = [&](std::int64_t key, std::int64_t count, const BFloat16* right) {
    pair_ops()->matmul(count, width_, padded / 2, {left.data + key * left.row, left.row, left.column}, right, step,
                       sums + key * width_, width_, 1, true);
  };
  if (!is_partial || are_finite(paired_, paired_ + padded * width_)) return add(0, keys, paired_);
  for (std::int64_t j = 0; j < keys; ++j) {
    const std::int64_t first = first_to_see(limit, columns, j);
    std::copy_n(paired_, padded * width_, seen_);
    for (std::int64_t c = 0; c < first; ++c) {
      for (std::int64_t i = 0; i < width_; ++i) seen_[c / 2 * step + 2 * i + c % 2] = {0};
    }
    add(j, 1, seen_);
  }
}

}  // namespace openmsa::cpu
