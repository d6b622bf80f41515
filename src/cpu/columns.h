// From the caller's tensors to fp32 tiles and back: queries as columns, keys as rows.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/arena.h"
#include "core/problem.h"
#include "cpu/tile/tile.h"

namespace openmsa::cpu {

/// Columns of one tile of scores that are worked on together.
inline constexpr std::int64_t kMaxColumns = 64;

/// `heads` consecutive heads, from `head`, of some queries of a sequence; column = member * heads + (h - head).
struct Columns {
  const std::int32_t* queries;  // ascending
  std::int64_t count;
  std::int64_t head;
  std::int64_t heads;

  std::int64_t size() const { return count * heads; }
  std::int64_t padded() const { return pad_lanes(size()); }
  /// The column's query row in a tile that begins with query `first`.
  std::int64_t row(std::int64_t column, std::int64_t first) const {
    return (queries[column / heads] - first) * heads + column % heads;
  }
};

/// Rows of q, index_q or d_o for `columns`, times `scale`: rows[column][channel], with zeros in padding columns and in
/// channels from `dim` to pad_lanes(dim).
void load_rows(const openmsa_tensor& tensor, const core::Sequence& sequence, const Columns& columns, std::int64_t dim,
               float scale, float* rows);

/// Query rows and their transpose, columns[channel][column], the right operand of a product with keys.
struct QueryTile {
  QueryTile(core::Arena& arena, std::int64_t dim, std::int64_t max_columns = kMaxColumns);
  void load(const openmsa_tensor& tensor, const core::Sequence& sequence, const Columns& columns, float scale);
  /// Rows that are bf16 as they are, fp32 ones rounded: a float of `rows` and `columns` holds two channels.
  void load_pairs(const openmsa_tensor& tensor, const core::Sequence& sequence, const Columns& columns);
  /// Rows of index_q, rounded to e4m3: each with a scale of its own, or as they are.
  void load_fp8(const openmsa_tensor& index_q, const core::Sequence& sequence, const Columns& columns, bool is_scaled);
  /// The same as bf16 and without the scales, which go to scales[column]; nullptr: rows are rounded as they are.
  void load_fp8_pairs(const openmsa_tensor& index_q, const core::Sequence& sequence, const Columns& columns,
                      float* scales);

  std::int64_t dim;
  std::int64_t rows_ld;     // pad_lanes(dim)
  std::int64_t columns_ld;  // pad_lanes(max_columns)
  float* rows;              // [max_columns][rows_ld]
  float* columns;           // [dim][columns_ld]
};

/// Calls body(j, tokens, token) for runs of tokens that lie evenly spaced: `tokens` of them, from token begin + j on.
template <class Body>
void for_each_run(const core::KeyRows& keys, std::int64_t begin, std::int64_t count, const Body& body) {
  for (std::int64_t j = 0, tokens = 0; j < count; j += tokens) {
    tokens = keys.run(begin + j, count - j);
    body(j, tokens, keys.token(begin + j));
  }
}

/// Up to one kv_block of k, v or index_k, times their scales, as fp32 rows.
struct KeyTile {
  KeyTile(core::Arena& arena, std::int64_t block_size, std::int64_t dim);
  /// Tokens [begin, begin + count): where they lie if fp32 and evenly spaced, else widened into scratch.
  void load(const core::KeyRows& keys, std::int64_t begin, std::int64_t count, const Ahead& ahead);
  /// Tokens that are bf16: where they lie if evenly spaced, else copied into scratch. Tokens that are e4m3: as bf16 in
  /// scratch, without their scales, which go to scales[key]. Returns whether there are scales.
  bool load_bf16(const core::KeyRows& keys, std::int64_t begin, std::int64_t count, float* scales, const Ahead& ahead);
  /// Tokens that are e4m3, as they are, and their scales, if there are any, to scales[key]. Returns false where they do not
  /// lie evenly spaced or a scale is Inf or NaN.
  bool load_codes(const core::KeyRows& keys, std::int64_t begin, std::int64_t count, float* scales);
  /// Tokens that are bf16 or fp16, as they are. Returns false where they do not lie evenly spaced, or not in whole vectors.
  bool load_halves(const core::KeyRows& keys, std::int64_t begin, std::int64_t count);
  Operand operand() const { return {data, ld, 1}; }

  std::int64_t dim;
  float* scratch;                           // [block_size][pad_lanes(dim)]
  const float* data = nullptr;              // of load
  const core::BFloat16* bf16 = nullptr;     // of load_bf16
  const core::Float8E4M3* codes = nullptr;  // of load_codes
  const std::byte* halves = nullptr;        // of load_halves
  std::int64_t ld = 0;                      // elements from one row to the next
};

/// max |from[i]|, NaN ignored.
float largest(const float* from, std::int64_t count);

/// to[i] = e4m3(from[i] * (448 / amax)), amax = max |from[i]|; returns amax / 448.
float round_row(const float* from, std::int64_t count, core::Float8E4M3* to);

/// limit[column] = keys of [begin, begin + count) that each column sees, causally; the same for padding columns.
/// Returns whether some column sees fewer than `count`.
bool causal_limits(const core::Sequence& sequence, const Columns& columns, std::int64_t begin, std::int64_t count,
                   float* limit);

/// Writes `count` fp32 values times `scale` to a row of an output of any float dtype.
void store_row(const float* values, float scale, std::int64_t count, openmsa_dtype dtype, std::byte* to);

/// tile[row of c][width] += product[c][width] for the query rows of `columns` in a tile that begins with query `first`.
void add_rows(const float* product, std::int64_t width, const Columns& columns, std::int64_t first, float* tile);

/// Writes the query rows of a tile, queries [first, first + count) of the heads of one KV head, times `scale`.
void store_rows(const float* tile, std::int64_t width, float scale, const core::Sequence& sequence, std::int64_t first,
                std::int64_t count, std::int64_t kv_head, std::int64_t heads, const openmsa_tensor& to);

/// Most queries of so many heads each whose rows are worked on together.
inline std::int64_t max_chunk(std::int64_t heads) { return std::max<std::int64_t>(kMaxColumns / heads, 1); }

/// Queries per chunk, where `count` of them are cut into as few chunks of at most kMaxColumns columns as there can be,
/// of about the same size: a narrow one at the end would cost more than its share.
inline std::int64_t chunk_size(std::int64_t count, std::int64_t heads) {
  const std::int64_t most = max_chunk(heads);
  const std::int64_t chunks = std::max<std::int64_t>(core::ceil_div(count, most), 1);
  const std::int64_t even = core::ceil_div(count, chunks);
  return std::clamp(pad_lanes(even * heads) / heads, even, most);
}

/// Runs body(columns) over the chunks of `queries`.
template <class Body>
void for_each_chunk(const std::int32_t* queries, std::int64_t count, std::int64_t head, std::int64_t heads,
                    const Body& body) {
  const std::int64_t size = chunk_size(count, heads);
  for (std::int64_t begin = 0; begin < count; begin += size) {
    body(Columns{queries + begin, std::min(size, count - begin), head, heads});
  }
}

}  // namespace openmsa::cpu
