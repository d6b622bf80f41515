// Index branch: parameters of the kernels.
#pragma once

#include <cstdint>

#include "cuda/common/query_tile.h"
#include "cuda/common/selection.h"
#include "cuda/common/tensor_view.h"
#include "cuda/common/topk_key.h"
#include "cuda/sm90/prefill/select/splits.h"

namespace openmsa::cuda::sm90::prefill {

/// Lengths of the lists that kernels are compiled with.
inline constexpr int kListCapacities[] = {16, 64};

/// (query, head) rows of a product, and warpgroups that multiply.
inline constexpr int kProductRows = 64, kSelectWarpgroups = 2;

/// Products of a warpgroup, which take turns. Long lists need the registers of the second one.
constexpr int select_products(int capacity) { return capacity > 32 ? 1 : 2; }

constexpr int select_tile_queries(int capacity, int heads) {
  return kSelectWarpgroups * select_products(capacity) * (kProductRows / heads);
}

struct SelectParams {
  BatchView batch;
  BatchIndex index;
  SelectionRules rules;

  IndexQueryRows index_q;
  std::int32_t heads;
  std::int32_t queries_per_tile;
  std::int32_t key_box_rows;
  TokenScale index_k_scale;  // of e4m3 keys
  BlockScale index_block_scale;

  // The keys of a tile are cut into splits(), as many as its call needs to fill the device.
  std::int32_t most_splits;
  const std::int32_t* longest;  // kv_blocks of the longest sequence

  SelectionView topk_indices;
  CandidateView candidates;  // instead of these

  Ranked* partial_lists;  // [tiles][query, head of the tile][splits][capacity]; unused with one split

  ScoreView block_scores;  // instead of topk_indices
  std::int32_t score_columns;
  float index_scale;

  OPENMSA_DEVICE std::int32_t num_tiles() const { return index.tiles[batch.batch + 1]; }
  OPENMSA_DEVICE std::int32_t splits() const {
    return most_splits == 1 ? 1 : select_splits(num_tiles(), rules.shard.held(*longest), most_splits);
  }
};

/// Place of the list of part `split` of `splits`, for row `row` of tile `tile`.
OPENMSA_DEVICE std::int64_t partial_list(const SelectParams& p, std::int32_t tile, std::int32_t splits,
                                         std::int32_t split, std::int32_t row, std::int32_t capacity) {
  const std::int32_t rows = p.queries_per_tile * p.heads;
  return ((std::int64_t{tile} * rows + row) * splits + split) * capacity;
}

}  // namespace openmsa::cuda::sm90::prefill
