// From a selection to work for the attention: what the schedule reads and what it hands over.
//
// A *tile* is up to kMaxTileQueries neighbouring queries of one sequence with the query heads of one KV head. The
// schedule splits the (query, kv_block) pairs of a tile in two. kv_blocks wanted by many of its queries, and those not
// wholly in their past, are the tile's *shared blocks*: q_outer works them off in one pass over the tile's queries.
// Every other pair goes to kv_outer, together with the pairs of other tiles that want the same kv_block, and leaves a
// partial result in a slot of its query.
#pragma once

#include <cstdint>

#include "cuda/common/query_tile.h"
#include "cuda/common/tensor_view.h"

namespace openmsa::cuda::generic {

inline constexpr int kMaxTileQueries = 32;
/// Queries of one work item of kv_outer, about: enough to pay for loading the kv_block, few enough to share hot ones
/// out.
inline constexpr int kItemVisits = 80;
/// The work items of a schedule batch go through its queries in as many passes, so that a pass finds its q in the L2
/// cache.
inline constexpr int kMaxPasses = 4;
/// Pairs of a pass that must want a kv_block, on average, to pay for loading it again.
inline constexpr int kMinPassVisits = 48;

/// A kv_block of a tile that q_outer works off, and the queries that want it.
struct SharedBlock {
  std::int32_t block;
  std::uint32_t members;  // bit x: query x of the tile
};

/// A query of a kv_outer item: its row in q, and the slot, counted over the schedule batch, for its partial result.
struct alignas(8) Visit {
  std::int32_t q_row;
  std::int32_t slot;
};

/// A kv_outer pair before it is put beside the others of its list.
struct KvOuterPair {
  Visit visit;
  std::int32_t list;  // kv_block, counted over all sequences, * passes + pass; -1: none
  std::int32_t rank;  // place in its list
};

/// Visits [begin, begin + count) of one kv_block.
struct KvOuterItem {
  std::int32_t sequence;
  std::int32_t block;
  std::int32_t begin;
  std::int32_t count;
};

/// A schedule batch: up to max_tiles tiles of one KV head. Batches are counted head by head; the arrays of several that
/// are scheduled together lie one after the other, those of this one are pointed to. All of them are workspace.
struct ScheduleBatch {
  std::int32_t number;
  std::int32_t batches_per_head;
  std::int32_t head;        // KV head
  std::int32_t first_tile;  // of all tiles
  std::int32_t max_tiles;
  std::int32_t tile_queries;  // queries per tile
  std::int32_t slots;         // partial results per query: topk
  std::int32_t most_passes;   // that the bytes of q ask for
  std::int32_t max_lists;     // passes * kv_blocks of all sequences, at most
  std::int32_t max_items;

  SharedBlock* shared;          // [max_tiles][tile_queries * topk]
  std::int32_t* shared_counts;  // [max_tiles]
  std::int32_t* slot_counts;    // [max_tiles][tile_queries]
  KvOuterPair* pairs;           // [max_tiles][tile_queries * topk]
  Visit* visits;                // as many as pairs, list after list
  KvOuterItem* items;           // [max_items]
  std::int32_t* list_counts;    // [max_lists], zero before and after
  std::int32_t* list_offsets;   // [max_lists]
  std::int32_t* num_items;      // [1]

  // One each only for those that are worked off beside each other.
  void* partial_o;     // [max_tiles][slots][tile_queries][group_size] rows of head_dim, each normalised
  float* partial_lse;  // [max_tiles][slots][tile_queries][group_size], base 2

  OPENMSA_DEVICE std::int64_t max_pairs() const { return std::int64_t{max_tiles} * tile_queries * slots; }

  /// Passes through the kv_outer work of a call whose sequences have so many kv_blocks.
  OPENMSA_DEVICE std::int32_t passes(std::int32_t blocks) const {
    const std::int64_t worthwhile = max_pairs() / (std::int64_t{blocks > 0 ? blocks : 1} * kMinPassVisits);
    return worthwhile < 1 ? 1 : static_cast<std::int32_t>(worthwhile < most_passes ? worthwhile : most_passes);
  }

  /// The one `i` places after this one, of those scheduled together.
  OPENMSA_DEVICE ScheduleBatch after(std::int32_t i) const {
    ScheduleBatch next = *this;
    next.number += i;
    next.head = next.number / batches_per_head;
    next.first_tile = next.number % batches_per_head * max_tiles;
    next.shared += i * max_pairs();
    next.shared_counts += i * max_tiles;
    next.slot_counts += i * max_tiles * tile_queries;
    next.pairs += i * max_pairs();
    next.visits += i * max_pairs();
    next.items += std::int64_t{i} * max_items;
    next.list_counts += std::int64_t{i} * max_lists;
    next.list_offsets += std::int64_t{i} * max_lists;
    next.num_items += i;
    return next;
  }
};

struct ScheduleParams {
  BatchView batch;
  BatchIndex index;
  ScheduleBatch work;
  SelectionView topk_indices;
  std::int32_t topk;
  std::int32_t shared_threshold;  // members from which on a kv_block is a shared one
  std::int32_t log2_group_size;
};

}  // namespace openmsa::cuda::generic
