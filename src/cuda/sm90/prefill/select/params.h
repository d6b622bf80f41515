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

/// How the (query, head) rows of a tile lie: `products` of 64 rows in each of `warpgroups` consumers.
struct SelectRows {
  int warpgroups;
  int products;

  constexpr int queries_per_tile(int heads) const { return warpgroups * (products * 64 / heads); }
};

/// Long lists need the registers of a second product. Products in e4m3 take half the time, so that the instructions
/// around them count: four warpgroups hide each other's latencies better than two.
constexpr SelectRows select_rows(bool is_fp8, int capacity) {
  if (capacity > 32) return {2, 1};
  return is_fp8 ? SelectRows{4, 1} : SelectRows{2, 2};
}

struct SelectParams {
  BatchView batch;
  BatchIndex index;
  SelectionRules rules;

  QueryRows index_q;  // [total_q][heads][index_dim]
  std::int32_t heads;
  std::int32_t queries_per_tile;
  std::int32_t key_box_rows;
  TokenScale index_k_scale;  // of e4m3 keys

  // The keys of a tile are cut into splits(), as many as its call needs to fill the device.
  std::int32_t most_splits;
  const std::int32_t* longest;  // kv_blocks of the longest sequence

  SelectionView topk_indices;

  Ranked* partial_lists;  // [tiles][splits][query, head of the tile][capacity]; unused with one split

  ScoreView block_scores;  // instead of topk_indices
  std::int32_t score_columns;
  float index_scale;

  OPENMSA_DEVICE std::int32_t num_tiles() const { return index.tiles[batch.batch + 1]; }
  OPENMSA_DEVICE std::int32_t splits() const {
    return most_splits == 1 ? 1 : select_splits(num_tiles(), *longest, most_splits);
  }
};

/// Place of a row's list: row `row` of tile `tile`, part `split` of `splits`.
OPENMSA_DEVICE std::int64_t partial_list(const SelectParams& p, std::int32_t tile, std::int32_t splits,
                                         std::int32_t split, std::int32_t row, std::int32_t capacity) {
  const std::int32_t rows = p.queries_per_tile * p.heads;
  return ((std::int64_t{tile} * splits + split) * rows + row) * capacity;
}

}  // namespace openmsa::cuda::sm90::prefill
