// How the (query, kv_block) pairs of a tile are split between its union and gathered work, as plain functions of the
// tile's selection: the kernels call them with a thread per entry, tests on the host.
#pragma once

#include "cuda/sm90/prefill/params.h"

namespace openmsa::cuda::sm90 {

OPENMSA_DEVICE int count_bits(std::uint32_t bits) {
#ifdef __CUDACC__
  return __popc(bits);
#else
  return __builtin_popcount(bits);
#endif
}

/// A tile's selection; entry e = query * topk + slot. The arrays fill from the first to the last: each function below
/// says which of them it needs.
struct TileSelection {
  std::int32_t entries;
  std::int32_t topk;
  std::int32_t* blocks;    // -1: unused, not visible, or a repetition
  std::uint32_t* members;  // queries of the tile that want the same kv_block; 0 where blocks is -1
  std::uint8_t* flags;     // whether the pair goes to the union

  static constexpr int kEntryBytes = sizeof(*blocks) + sizeof(*members) + sizeof(*flags);

  /// Whether the query names its kv_block in an earlier slot too. Needs blocks as they were read.
  OPENMSA_DEVICE bool repeats(int e) const {
    bool found = false;
    for (int other = e / topk * topk; other < e; ++other) found |= blocks[other] == blocks[e];
    return found;
  }

  /// Who wants the kv_block of entry e. Needs blocks without repetitions, as do all that follow.
  OPENMSA_DEVICE std::uint32_t wanted_by(int e) const {
    std::uint32_t result = 0;
    for (int query = 0, other = 0; blocks[e] >= 0 && other < entries; ++query) {
      bool wants = false;
      for (const int end = other + topk; other < end; ++other) wants |= blocks[other] == blocks[e];
      result |= std::uint32_t{wants} << query;
    }
    return result;
  }

  /// Whether a kv_block goes to the union: wanted by enough, or not wholly in the past of the tile's first query, so
  /// that only the union knows a causal mask. Needs members.
  OPENMSA_DEVICE bool joins(int e, std::int32_t first_position, std::int32_t block_size, std::int32_t threshold) const {
    const bool in_past = (blocks[e] + 1) * block_size <= first_position + 1;
    return blocks[e] >= 0 && (!in_past || count_bits(members[e]) >= threshold);
  }

  OPENMSA_DEVICE bool is_gathered(int e) const { return blocks[e] >= 0 && !flags[e]; }

  /// The entry that puts a kv_block into the union: that of its first member. Needs flags, as do all that follow.
  OPENMSA_DEVICE bool leads(int e) const { return leads(e, e / topk); }
  OPENMSA_DEVICE bool leads(int e, int query) const {
    const std::uint32_t before = (std::uint32_t{1} << query) - 1;
    return flags[e] && (members[e] & before) == 0;
  }

  /// Place of a leading entry's kv_block in the union, which ascends.
  OPENMSA_DEVICE int union_rank(int e) const {
    int rank = 0;
    for (int query = 0, other = 0; other < entries; ++query) {
      for (const int end = other + topk; other < end; ++other) rank += leads(other, query) && blocks[other] < blocks[e];
    }
    return rank;
  }

  /// Place of a gathered pair's partial result among those of its query, in the order of kv_blocks.
  OPENMSA_DEVICE int slot(int e) const {
    int result = 0;
    const int first = e / topk * topk;
    for (int other = first; other < first + topk; ++other) result += is_gathered(other) && blocks[other] < blocks[e];
    return result;
  }
};

/// The kv_block in a slot of a query of the tile; -1 where it is unused or not visible.
OPENMSA_DEVICE std::int32_t selected_block(const PrefillParams& p, const QueryTile& tile, int query, int slot) {
  const std::int64_t at = p.chunk.head * p.topk_strides[0] + (tile.q_row + query) * p.topk_strides[1];
  const std::int32_t block = p.topk_indices[at + slot * p.topk_strides[2]];
  const std::int32_t position = tile.position + query;
  return block >= 0 && position >= 0 && block <= position / p.batch.block_size ? block : -1;
}

/// A gathered entry of the chunk's tile `number`, but for its rank in the list.
OPENMSA_DEVICE GatheredPair gathered_pair(const PrefillParams& p, const QueryTile& tile, const TileSelection& s,
                                          std::int32_t number, int e) {
  const std::int32_t query = e / s.topk;
  const std::int32_t slot = (number * p.chunk.tile_queries + query) * p.chunk.slots + s.slot(e);
  return {{tile.q_row + query, slot}, p.index.blocks[tile.sequence] + s.blocks[e], 0};
}

/// Work items of a list of `visits`.
OPENMSA_DEVICE std::int32_t num_items(std::int32_t visits) { return (visits + kMaxItemVisits - 1) / kMaxItemVisits; }

/// Item i of a list whose visits are [first_visit, first_visit + visits).
OPENMSA_DEVICE GatheredItem gathered_item(const PrefillParams& p, std::int32_t list, std::int32_t first_visit,
                                          std::int32_t visits, std::int32_t i) {
  const std::int32_t sequence = find_sequence(p.index.blocks, p.batch.batch, list);
  const std::int32_t begin = i * kMaxItemVisits, rest = visits - begin;
  return {sequence, list - p.index.blocks[sequence], first_visit + begin,
          rest < kMaxItemVisits ? rest : kMaxItemVisits};
}

}  // namespace openmsa::cuda::sm90
