// How the (query, kv_block) pairs of a tile are split between q_outer and kv_outer, as plain functions of the
// tile's selection: the kernels call them with a thread per entry, tests on the host.
#pragma once

#include <utility>

#include "cuda/generic/schedule/params.h"

namespace openmsa::cuda::generic {

#ifdef __CUDACC__
OPENMSA_DEVICE int count_bits(std::uint32_t bits) { return __popc(bits); }
OPENMSA_DEVICE std::uint32_t fetch_or(std::uint32_t& word, std::uint32_t bits) { return atomicOr(&word, bits); }
OPENMSA_DEVICE std::int32_t fetch_add(std::int32_t& word, std::int32_t x) { return atomicAdd(&word, x); }
OPENMSA_DEVICE std::int32_t exchange_if(std::int32_t& word, std::int32_t expected, std::int32_t x) {
  return atomicCAS(&word, expected, x);
}
#else
inline int count_bits(std::uint32_t bits) { return __builtin_popcount(bits); }
inline std::uint32_t fetch_or(std::uint32_t& word, std::uint32_t bits) { return std::exchange(word, word | bits); }
inline std::int32_t fetch_add(std::int32_t& word, std::int32_t x) { return std::exchange(word, word + x); }
inline std::int32_t exchange_if(std::int32_t& word, std::int32_t expected, std::int32_t x) {
  return word == expected ? std::exchange(word, x) : word;
}
#endif

/// Numbers of the lists of one tile's kv_blocks: the kv_block, counted over all sequences, * passes + the tile's pass.
struct ListNumbers {
  std::int32_t first_block;  // of the tile's sequence
  std::int32_t passes;
  std::int32_t pass;

  OPENMSA_DEVICE ListNumbers(const ScheduleParams& p, const ScheduleBatch& work, const QueryTile& tile,
                             std::int32_t number)
      : first_block(p.index.blocks[tile.sequence]),
        passes(work.passes(p.index.blocks[p.batch.batch])),
        pass(static_cast<std::int32_t>(std::int64_t{number} * passes / work.max_tiles)) {}

  OPENMSA_DEVICE std::int32_t of(std::int32_t block) const { return (first_block + block) * passes + pass; }
};

/// A tile's selection while it is split. Entry e = query * topk + slot of the selection. The phases, each for all
/// entries before the next begins:
///
///   enter     who wants which kv_block: a hash table with open addressing; a kv_block that a query names twice counts
///             once
///   decide    q_outer or kv_outer; the tile's shared blocks are collected in any order
///   reserve   places in the list of each kv_outer kv_block, for all of its pairs at once
///   then      rank() of the shared blocks, slot() and place_in_list() of the kv_outer pairs
///
/// Threads take the entries in any order: what comes out follows from the selection, but for the order of `shared`.
struct TileSelection {
  static constexpr std::int32_t kNone = -1;

  std::int32_t entries;
  std::int32_t topk;
  std::int32_t log2_table;
  std::int32_t* keys;        // [1 << log2_table] kv_block; kNone at first; after reserve() its first place in its list
  std::uint32_t* members;    // beside it, bit x: query x of the tile wants it; 0 at first
  std::int32_t* places;      // [entries] in the table; kNone: unused, not visible, or a repetition
  std::int32_t* kv_outer;    // [entries] kv_block of a kv_outer pair, else kNone
  SharedBlock* shared;       // [entries]
  std::int32_t* num_shared;  // 0 at first

  /// Twice as many places as entries.
  static constexpr std::int32_t log2_table_for(std::int32_t entries) {
    std::int32_t log2 = 1;
    while (1 << log2 < 2 * entries) ++log2;
    return log2;
  }

  OPENMSA_DEVICE void enter(int e, std::int32_t block) {
    places[e] = kNone;
    if (block < 0) return;
    const std::uint32_t bit = std::uint32_t{1} << e / topk, mask = (std::uint32_t{1} << log2_table) - 1;
    std::uint32_t at = static_cast<std::uint32_t>(block) * 2654435761u >> (32 - log2_table);
    for (std::int32_t found; (found = exchange_if(keys[at], kNone, block)) != kNone && found != block;) {
      at = (at + 1) & mask;
    }
    if ((fetch_or(members[at], bit) & bit) == 0) places[e] = static_cast<std::int32_t>(at);
  }

  /// A kv_block is a shared one where enough queries want it, and where it is not wholly in the past of the tile's
  /// first query, so that only q_outer knows a causal mask.
  OPENMSA_DEVICE void decide(int e, std::int32_t first_position, std::int32_t block_size,
                             std::int32_t threshold) const {
    kv_outer[e] = kNone;
    if (places[e] == kNone) return;
    const std::int32_t block = keys[places[e]];
    const std::uint32_t wanted_by = members[places[e]];
    const bool in_past = (block + 1) * block_size <= first_position + 1;
    if (in_past && count_bits(wanted_by) < threshold) {
      kv_outer[e] = block;
    } else if (members_before(e) == 0) {  // its first member enters it
      shared[fetch_add(*num_shared, 1)] = {block, wanted_by};
    }
  }

  OPENMSA_DEVICE void reserve(int e, const ListNumbers& lists, std::int32_t* list_counts) const {
    if (kv_outer[e] == kNone || members_before(e) != 0) return;
    keys[places[e]] = fetch_add(list_counts[lists.of(kv_outer[e])], count_bits(members[places[e]]));
  }

  OPENMSA_DEVICE std::int32_t place_in_list(int e) const { return keys[places[e]] + members_before(e); }

  /// Place of shared[u] among the tile's shared blocks, which ascend.
  OPENMSA_DEVICE int rank(int u) const {
    int result = 0;
    for (int other = 0; other < *num_shared; ++other) result += shared[other].block < shared[u].block;
    return result;
  }

  /// Place of a kv_outer pair's partial result among those of its query, in the order of kv_blocks.
  OPENMSA_DEVICE int slot(int e) const {
    int result = 0;
    const int first = e / topk * topk;
    for (int other = first; other < first + topk; ++other) {
      result += kv_outer[other] != kNone && kv_outer[other] < kv_outer[e];
    }
    return result;
  }

 private:
  /// Queries before that of entry e that want its kv_block too.
  OPENMSA_DEVICE int members_before(int e) const {
    return count_bits(members[places[e]] & ((std::uint32_t{1} << e / topk) - 1));
  }
};

/// The kv_block in a slot of a query of the tile; negative where it is unused, not visible or in another shard.
OPENMSA_DEVICE std::int32_t selected_block(const ScheduleParams& p, const ScheduleBatch& work, const QueryTile& tile,
                                           int query, int slot) {
  const std::int32_t block = p.topk_indices.row(work.head, tile.q_row + query)[slot * p.topk_indices.strides[2]];
  const std::int32_t position = tile.position + query;
  const bool is_visible = block >= 0 && position >= 0 && block <= position / p.batch.block_size;
  return is_visible && p.batch.shard.holds(block) ? block : -1;
}

/// Pair of kv_outer entry e of the schedule batch's tile `number`.
OPENMSA_DEVICE KvOuterPair kv_outer_pair(const ScheduleBatch& work, const QueryTile& tile, const TileSelection& s,
                                         const ListNumbers& lists, std::int32_t number, int e) {
  const std::int32_t query = e / s.topk;
  const std::int32_t slot = (number * work.slots + s.slot(e)) * work.tile_queries + query;
  return {{tile.q_row + query, slot}, lists.of(s.kv_outer[e]), s.place_in_list(e)};
}

/// The kv_outer work on one kv_block: its visits, in the order of the passes that their queries belong to, cut into
/// items of even size. Item i is worked off in pass i * passes / items.
struct KvOuterBlock {
  std::int32_t visits;
  std::int32_t item_visits;  // of each item but the last
  std::int32_t items;

  OPENMSA_DEVICE KvOuterBlock(std::int32_t visits, std::int32_t log2_group_size) : visits(visits) {
    const std::int32_t tile = 64 >> log2_group_size;  // items hold whole tiles of kv_outer
    const std::int32_t shares = ceil_div(visits, kItemVisits);
    item_visits = shares == 0 ? tile : ceil_div(ceil_div(visits, shares), tile) * tile;
    items = ceil_div(visits, item_visits);
  }
  /// The first item that is worked off in `pass` or later.
  OPENMSA_DEVICE std::int32_t first_of_pass(std::int32_t pass, std::int32_t passes) const {
    return ceil_div(pass * items, passes);
  }
  OPENMSA_DEVICE std::int32_t items_of_pass(std::int32_t pass, std::int32_t passes) const {
    return first_of_pass(pass + 1, passes) - first_of_pass(pass, passes);
  }
  OPENMSA_DEVICE KvOuterItem item(std::int32_t i, std::int32_t sequence, std::int32_t block,
                                  std::int32_t first_visit) const {
    const std::int32_t begin = i * item_visits, rest = visits - begin;
    return {sequence, block, first_visit + begin, rest < item_visits ? rest : item_visits};
  }

 private:
  static OPENMSA_DEVICE std::int32_t ceil_div(std::int32_t a, std::int32_t b) { return (a + b - 1) / b; }
};

}  // namespace openmsa::cuda::generic
