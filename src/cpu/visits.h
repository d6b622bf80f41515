// Who attends to what, both ways: the kv_blocks that a tile of queries visits, and the queries that visit a kv_block.
// For sparse attention both come from topk_indices; for dense attention every query visits all blocks up to its own.
#pragma once

#include <cstdint>

#include "core/arena.h"
#include "core/problem.h"
#include "cpu/loops.h"
#include "cpu/work.h"

namespace openmsa::cpu {

/// A kv_block and queries, ascending, that see some of its keys.
struct Visit {
  std::int64_t block;
  const std::int32_t* queries;
  std::int64_t count;
};

/// The visits of a tile of queries of one KV head, in ascending order of kv_blocks.
class TileVisits {
 public:
  TileVisits(core::Arena& arena, const core::Plan& plan, std::int64_t max_queries);

  /// The tile's queries with their rows of topk_indices.
  void begin_sparse(const core::Problem& problem, const HeadTile& tile);
  /// The tile's queries with all visible kv_blocks.
  void begin_dense(const core::Plan& plan, const HeadTile& tile);
  bool next(Visit& visit);

 private:
  bool next_sparse(Visit& visit);
  bool next_dense(Visit& visit);

  std::int64_t* offsets_;  // sparse: [max_blocks + 1] of each kv_block's queries
  std::int32_t* queries_;  // sparse: of all kv_blocks, one after the other; dense: of the tile
  bool dense_ = false;
  std::int64_t cursor_ = 0, end_ = 0;  // kv_blocks
  std::int64_t block_size_ = 0;
  core::Sequence sequence_{};
  std::int64_t count_ = 0;  // dense: queries of the tile
};

/// Starts the visits of a tile's queries: over the selection, or over the whole history without one.
void begin_visits(TileVisits& visits, const core::Problem& problem, const HeadTile& tile);

/// The queries that visit each kv_block, for all sequences and KV heads.
class Visitors {
 public:
  Visitors(core::Arena& arena, const core::Plan& plan);
  void build(const core::Problem& problem, const Loops& loops);
  Visit of(const core::Problem& problem, const HeadBlock& at) const;

 private:
  std::int64_t* offsets(const core::Problem& problem, std::int64_t b, std::int64_t head) const;
  std::int32_t* queries(const core::Problem& problem, const core::Sequence& sequence, std::int64_t head) const;

  std::int64_t* offsets_;  // [max_batch][num_heads_kv][max_blocks + 1]
  std::int32_t* queries_;  // sparse: [num_heads_kv][total_q][topk]; dense: 0, 1, 2, ... [max_total_q]
};

}  // namespace openmsa::cpu
