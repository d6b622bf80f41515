#include "cpu/columns.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/row_scale.h"

namespace openmsa::cpu {

using core::address;

namespace {

constexpr std::int64_t kMaxDim = 256;

/// to[i] = e4m3(from[i]); returns 1, the scale.
float cast_row(const float* from, std::int64_t count, core::Float8E4M3* to) {
  tile_ops().narrow(OPENMSA_FLOAT8_E4M3, from, reinterpret_cast<std::byte*>(to), count);
  return 1;
}

}  // namespace

void load_rows(const openmsa_tensor& tensor, const core::Sequence& sequence, const Columns& columns, std::int64_t dim,
               float scale, float* rows) {
  const TileOps& ops = tile_ops();
  const std::int64_t ld = pad_lanes(dim);
  float* row = rows;
  for (std::int64_t member = 0; member < columns.count; ++member) {
    for (std::int64_t h = 0; h < columns.heads; ++h, row += ld) {
      ops.widen(tensor.dtype, address(tensor, sequence.q_begin + columns.queries[member], columns.head + h), row, dim,
                scale);
      std::fill(row + dim, row + ld, 0.0f);
    }
  }
  std::fill(row, rows + columns.padded() * ld, 0.0f);
}

QueryTile::QueryTile(core::Arena& arena, std::int64_t dim, std::int64_t max_columns)
    : dim(dim),
      rows_ld(pad_lanes(dim)),
      columns_ld(pad_lanes(max_columns)),
      rows(arena.take<float>(columns_ld * rows_ld)),
      columns(arena.take<float>(dim * columns_ld)) {}

void QueryTile::load(const openmsa_tensor& tensor, const core::Sequence& sequence, const Columns& which, float scale) {
  load_rows(tensor, sequence, which, dim, scale, rows);
  tile_ops().transpose(rows, rows_ld, which.padded(), dim, columns, columns_ld);
}

void QueryTile::load_pairs(const openmsa_tensor& tensor, const core::Sequence& sequence, const Columns& which) {
  const auto row_bytes = static_cast<std::size_t>(dim) * sizeof(core::BFloat16);
  float* row = rows;
  for (std::int64_t member = 0; member < which.count; ++member) {
    for (std::int64_t h = 0; h < which.heads; ++h, row += rows_ld) {
      const std::byte* const from = address(tensor, sequence.q_begin + which.queries[member], which.head + h);
      if (tensor.dtype == OPENMSA_BFLOAT16) {
        std::memcpy(row, from, row_bytes);
      } else {
        tile_ops().narrow(OPENMSA_BFLOAT16, reinterpret_cast<const float*>(from), reinterpret_cast<std::byte*>(row),
                          dim);
      }
    }
  }
  std::fill(row, rows + which.padded() * rows_ld, 0.0f);
  tile_ops().transpose(rows, rows_ld, which.padded(), dim / 2, columns, columns_ld);
}

void QueryTile::load_fp8(const openmsa_tensor& index_q, const core::Sequence& sequence, const Columns& which,
                         bool is_scaled) {
  core::Float8E4M3 rounded[kMaxDim];
  load_rows(index_q, sequence, which, dim, 1, rows);
  for (std::int64_t column = 0; column < which.size(); ++column) {
    float* row = rows + column * rows_ld;
    const float scale = is_scaled ? round_row(row, dim, rounded) : cast_row(row, dim, rounded);
    tile_ops().widen(OPENMSA_FLOAT8_E4M3, reinterpret_cast<const std::byte*>(rounded), row, dim, scale);
  }
  tile_ops().transpose(rows, rows_ld, which.padded(), dim, columns, columns_ld);
}

void QueryTile::load_fp8_pairs(const openmsa_tensor& index_q, const core::Sequence& sequence, const Columns& which,
                               float* scales) {
  core::Float8E4M3 rounded[kMaxDim];
  load_rows(index_q, sequence, which, dim, 1, rows);
  for (std::int64_t column = 0; column < which.size(); ++column) {
    float* const row = rows + column * rows_ld;
    const float scale = scales != nullptr ? round_row(row, dim, rounded) : cast_row(row, dim, rounded);
    if (scales != nullptr) scales[column] = scale;
    pair_ops()->widen_e4m3(rounded, dim, 1, dim, reinterpret_cast<core::BFloat16*>(row), {});
  }
  if (scales != nullptr) std::fill(scales + which.size(), scales + which.padded(), 1.0f);
  tile_ops().transpose(rows, rows_ld, which.padded(), dim / 2, columns, columns_ld);
}

namespace {

/// What is left of a scale to multiply with: all of it, unless it is Inf or NaN, which go into the row.
float take_scale(core::BFloat16* row, std::int64_t count, float scale) {
  if (std::isfinite(scale)) return scale;
  for (std::int64_t c = 0; c < count; ++c) row[c] = core::to_bfloat16(core::to_float(row[c]) * scale);
  return 1;
}

}  // namespace

KeyTile::KeyTile(core::Arena& arena, std::int64_t block_size, std::int64_t dim)
    : dim(dim), scratch(arena.take<float>(block_size * pad_lanes(dim))) {}

void KeyTile::load(const core::KeyRows& keys, std::int64_t begin, std::int64_t count, const Ahead& ahead) {
  if (keys.dtype == OPENMSA_FLOAT32 && dim % kLanes == 0 && keys.run(begin, count) == count) {
    data = reinterpret_cast<const float*>(keys.token(begin));
    ld = keys.token_bytes / static_cast<std::int64_t>(sizeof(float));
    return;
  }
  const TileOps& ops = tile_ops();
  ld = pad_lanes(dim);
  data = scratch;
  for_each_run(keys, begin, count, [&](std::int64_t j, std::int64_t tokens, const std::byte* token) {
    const bool has_one_scale = keys.scales == nullptr || keys.scales_stride == 0;
    const std::int64_t rows = has_one_scale ? tokens : 1;
    for (std::int64_t i = j; i < j + tokens; i += rows, token += keys.token_bytes) {
      const float scale = keys.scales == nullptr ? 1 : keys.scale(begin + i);
      ops.widen_rows(keys.dtype, token, keys.token_bytes, rows, scratch + i * ld, ld, dim, scale,
                     ahead.part(i, i + rows, count));
    }
  });
  if (dim == ld) return;
  for (std::int64_t j = 0; j < count; ++j) std::fill(scratch + j * ld + dim, scratch + (j + 1) * ld, 0.0f);
}

bool KeyTile::load_bf16(const core::KeyRows& keys, std::int64_t begin, std::int64_t count, float* scales,
                        const Ahead& ahead) {
  const bool is_fp8 = keys.dtype == OPENMSA_FLOAT8_E4M3;
  if (!is_fp8 && keys.run(begin, count) == count) {
    bf16 = reinterpret_cast<const core::BFloat16*>(keys.token(begin));
    ld = keys.token_bytes / static_cast<std::int64_t>(sizeof(core::BFloat16));
    return false;
  }
  auto* const copy = reinterpret_cast<core::BFloat16*>(scratch);
  for_each_run(keys, begin, count, [&](std::int64_t j, std::int64_t tokens, const std::byte* token) {
    core::BFloat16* const rows = copy + j * dim;
    if (is_fp8) {
      pair_ops()->widen_e4m3(reinterpret_cast<const core::Float8E4M3*>(token), keys.token_bytes, tokens, dim, rows,
                             ahead.part(j, j + tokens, count));
    } else {
      const auto bytes = static_cast<std::size_t>(dim) * sizeof(core::BFloat16);
      for (std::int64_t i = 0; i < tokens; ++i) std::memcpy(rows + i * dim, token + i * keys.token_bytes, bytes);
    }
  });
  bf16 = copy;
  ld = dim;
  if (keys.scales == nullptr) return false;
  for (std::int64_t j = 0; j < count; ++j) scales[j] = take_scale(copy + j * dim, dim, keys.scale(begin + j));
  return true;
}

bool KeyTile::load_codes(const core::KeyRows& keys, std::int64_t begin, std::int64_t count, float* scales) {
  if (keys.dtype != OPENMSA_FLOAT8_E4M3 || keys.run(begin, count) != count) return false;
  codes = reinterpret_cast<const core::Float8E4M3*>(keys.token(begin));
  ld = keys.token_bytes;
  if (keys.scales == nullptr) return true;
  for (std::int64_t j = 0; j < count; ++j) scales[j] = keys.scale(begin + j);
  return std::all_of(scales, scales + count, [](float scale) { return std::isfinite(scale); });
}

bool KeyTile::load_halves(const core::KeyRows& keys, std::int64_t begin, std::int64_t count) {
  const bool has_16_bits = keys.dtype == OPENMSA_BFLOAT16 || keys.dtype == OPENMSA_FLOAT16;
  if (!has_16_bits || dim % kLanes != 0 || keys.run(begin, count) != count) return false;
  halves = keys.token(begin);
  ld = keys.token_bytes / static_cast<std::int64_t>(sizeof(core::BFloat16));
  return true;
}

float largest(const float* from, std::int64_t count) {
  float amax = 0;
  for (std::int64_t c = 0; c < count; ++c) amax = std::fabs(from[c]) > amax ? std::fabs(from[c]) : amax;
  return amax;
}

float round_row(const float* from, std::int64_t count, core::Float8E4M3* to) {
  const core::RowScale scale = core::row_scale(largest(from, count));
  for (std::int64_t c = 0; c < count; ++c) to[c] = core::to_float8_e4m3(from[c] * scale.to_fp8);
  return scale.from_fp8;
}

bool causal_limits(const core::Sequence& sequence, const Columns& columns, std::int64_t begin, std::int64_t count,
                   float* limit) {
  if (columns.count > 0 && sequence.position(columns.queries[0]) >= begin + count - 1) {  // so do later queries
    std::fill(limit, limit + columns.padded(), static_cast<float>(count));
    return false;
  }
  bool partial = false;
  for (std::int64_t member = 0; member < columns.count; ++member) {
    const std::int64_t visible = sequence.position(columns.queries[member]) - begin + 1;
    const std::int64_t keys = std::clamp<std::int64_t>(visible, 0, count);
    partial |= keys < count;
    std::fill_n(limit + member * columns.heads, columns.heads, static_cast<float>(keys));
  }
  std::fill(limit + columns.size(), limit + columns.padded(), static_cast<float>(count));
  return partial;
}

void store_row(const float* values, float scale, std::int64_t count, openmsa_dtype dtype, std::byte* to) {
  constexpr std::int64_t kPiece = 64;
  float scaled[kPiece];
  const auto bytes = static_cast<std::int64_t>(openmsa_dtype_bytes(dtype));
  for (std::int64_t begin = 0; begin < count; begin += kPiece) {
    const std::int64_t size = std::min(kPiece, count - begin);
    for (std::int64_t i = 0; i < size; ++i) scaled[i] = values[begin + i] * scale;
    tile_ops().narrow(dtype, scaled, to + begin * bytes, size);
  }
}

void add_rows(const float* product, std::int64_t width, const Columns& columns, std::int64_t first, float* tile) {
  for (std::int64_t c = 0; c < columns.size(); ++c) {
    tile_ops().scale_add(tile + columns.row(c, first) * width, product + c * width, 1, width);
  }
}

void store_rows(const float* tile, std::int64_t width, float scale, const core::Sequence& sequence, std::int64_t first,
                std::int64_t count, std::int64_t kv_head, std::int64_t heads, const openmsa_tensor& to) {
  for (std::int64_t row = 0; row < count * heads; ++row) {
    store_row(tile + row * width, scale, to.shape[2], to.dtype,
              address(to, sequence.q_begin + first + row / heads, kv_head * heads + row % heads));
  }
}

}  // namespace openmsa::cpu
