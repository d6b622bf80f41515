// Index branch: parameters of the kernels.
#pragma once

#include <cstdint>

#include "cuda/common/query_tile.h"
#include "cuda/common/selection.h"
#include "cuda/common/tensor_view.h"
#include "cuda/common/topk_key.h"
#include "cuda/sm80/heuristics.h"
#include "cuda/sm80/tile/keys.h"

namespace openmsa::cuda::sm80::select {

/// Lengths of the lists that kernels are compiled with; without a list they write block_scores.
inline constexpr int kNoList = 0;
inline constexpr int kListCapacities[] = {16, 64};

/// Warps of a CTA of a prompt, and (query, head) rows of its tile. A warp has 32 rows, one for each lane to keep the
/// list of; long lists need the registers of half of them.
inline constexpr int kPromptWarps = 8;
constexpr int warp_products(int capacity) { return capacity > 16 ? 1 : 2; }
constexpr int prompt_rows(int capacity) { return kPromptWarps * 16 * warp_products(capacity); }

/// (query, head) rows of a tile of decode, at most.
inline constexpr int kDecodeRows = 64;

struct SelectParams {
  BatchView batch;
  BatchIndex index;
  SelectionRules rules;

  IndexQueryRows index_q;
  openmsa_dtype q_dtype;
  KeyTensor index_k;
  TokenScale index_k_scale;  // of e4m3 keys
  BlockScale index_block_scale;
  std::int32_t heads;
  std::int32_t queries_per_tile;

  SelectionView topk_indices;

  // Prompts. The keys of a tile are cut into splits(), as many as its call needs to fill the device.
  std::int32_t items;
  std::int32_t most_splits;
  const std::int32_t* longest;  // kv_blocks of the longest sequence
  Ranked* partial_lists;        // [tiles][query, head of the tile][splits][capacity]; unused with one split

  ScoreView block_scores;  // of block_scores, instead of topk_indices
  std::int32_t score_columns;
  float index_scale;

  // Decode.
  float* scores;  // [rows][padded_columns]
  std::int64_t padded_columns;
  bool is_mixture;  // rows are those of all tiles; otherwise those of all queries

  OPENMSA_DEVICE std::int32_t num_tiles() const { return index.tiles[batch.batch + 1]; }
  OPENMSA_DEVICE std::int32_t splits() const {
    return most_splits == 1 ? 1 : select_splits(num_tiles(), *longest, items, most_splits);
  }
  OPENMSA_DEVICE std::int32_t tile_rows() const { return queries_per_tile * heads; }

  /// List of part `split` of `splits`, for row `row` of tile `tile`.
  OPENMSA_DEVICE Ranked* partial_list(std::int32_t tile, std::int32_t splits, std::int32_t split, std::int32_t row,
                                      std::int32_t capacity) const {
    return partial_lists + ((std::int64_t{tile} * tile_rows() + row) * splits + split) * capacity;
  }
  /// Scores of row `row` of tile `number`.
  OPENMSA_DEVICE float* score_row(const QueryTile& tile, std::int32_t number, std::int32_t row) const {
    const std::int64_t first = is_mixture ? std::int64_t{number} * tile_rows() : std::int64_t{tile.q_row} * heads;
    return scores + (first + row) * padded_columns;
  }
};

}  // namespace openmsa::cuda::sm80::select
