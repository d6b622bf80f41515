// Attention over a selection: what the schedule hands to the two attention kernels.
//
// A *tile* is up to kMaxTileQueries neighbouring queries of one sequence with the query heads of one KV head. The
// schedule splits the (query, kv_block) pairs of a tile in two: kv_blocks wanted by many of its queries, and those not
// wholly in their past, go to the tile's *union*, which one pass over the tile's queries works off; every other pair is
// *gathered* with pairs of other tiles that want the same kv_block, and leaves a partial result in a slot of its query.
#pragma once

#include <cstdint>

#include "cuda/common/batch_view.h"

namespace openmsa::cuda::sm90 {

inline constexpr int kMaxTileQueries = 32;
/// Gathered queries of one work item: enough to pay for loading the kv_block, few enough to share hot ones out.
inline constexpr int kMaxItemVisits = 64;

/// A kv_block of a tile's union and the queries that want it.
struct UnionEntry {
  std::int32_t block;
  std::uint32_t members;  // bit x: query x of the tile
};

/// A gathered query: its row in q, and the slot, counted over the chunk, for its partial result.
struct alignas(8) Visit {
  std::int32_t q_row;
  std::int32_t slot;
};

/// Pairs that want the same kv_block, before they are put side by side.
struct GatheredPair {
  Visit visit;
  std::int32_t list;  // kv_block, counted over all sequences
  std::int32_t rank;  // place in its list
};

/// Visits [begin, begin + count) of one kv_block.
struct GatheredItem {
  std::int32_t sequence;
  std::int32_t block;
  std::int32_t begin;
  std::int32_t count;
};

/// A chunk: tiles [first_tile, first_tile + max_tiles) of one KV head. All arrays are workspace.
struct Chunk {
  std::int32_t first_tile;
  std::int32_t max_tiles;
  std::int32_t head;          // KV head
  std::int32_t tile_queries;  // queries per tile
  std::int32_t slots;         // partial results per query: topk
  std::int32_t max_lists;

  UnionEntry* unions;          // [max_tiles][tile_queries * topk]
  std::int32_t* union_counts;  // [max_tiles]
  std::int32_t* slot_counts;   // [max_tiles][tile_queries]
  GatheredPair* pairs;         // [max_tiles][tile_queries * topk]; list -1: none
  Visit* visits;               // the same number, list after list
  GatheredItem* items;         // [max_lists + pairs / kMaxItemVisits]
  std::int32_t* list_counts;   // [max_lists], zero between chunks
  std::int32_t* list_offsets;  // [max_lists]
  std::int32_t* num_items;
  void* partial_o;     // [max_tiles * tile_queries][slots][group_size][head_dim], each row of weight 1
  float* partial_lse;  // [max_tiles * tile_queries][slots][group_size], base 2
};

struct PrefillParams {
  BatchView batch;
  BatchIndex index;
  Chunk chunk;

  const std::int32_t* topk_indices;  // [heads_kv][total_q][topk]
  std::int64_t topk_strides[3];
  std::int32_t topk;
  std::int32_t union_threshold;  // members from which on a kv_block goes to the union

  std::int32_t log2_group_size;
  std::int32_t key_box_rows;
  float scale_log2;  // softmax_scale * log2(e)

  void* o;  // [total_q][heads_q][head_dim]
  std::int64_t o_strides[2];
  float* lse;  // [total_q][heads_q], natural logarithm; nullptr: not wanted
  std::int64_t lse_strides[2];
};

}  // namespace openmsa::cuda::sm90
