// Exp-free top-k: the running selection of one query and KV head.
#pragma once

#include <cstdint>
#include <span>

#include "core/candidates.h"
#include "core/problem.h"
#include "cpu/tile/tile.h"

namespace openmsa::cpu {

using core::Candidates;
using core::score_key;

struct ScoredBlock {
  std::int32_t key;  // score_key
  std::int32_t block;
};

/// Keeps the `slots` best of the blocks offered in ascending order; a later block wins only by a higher score.
class TopkList {
 public:
  /// `memory` holds `slots` entries and outlives the list.
  TopkList(ScoredBlock* memory, std::int64_t slots) : list_(memory), slots_(slots) {}

  void offer(ScoredBlock candidate) {
    if (size_ < slots_) {
      insert(candidate, size_++);
    } else if (slots_ > 0 && candidate.key > list_[slots_ - 1].key) {
      insert(candidate, slots_ - 1);
    }
  }

  std::span<const ScoredBlock> entries() const { return {list_, static_cast<std::size_t>(size_)}; }

 private:
  /// Places the candidate among the first `end` entries and itself; the entry at `end` is lost.
  void insert(ScoredBlock candidate, std::int64_t end) {
    for (; end > 0 && candidate.key > list_[end - 1].key; --end) list_[end] = list_[end - 1];
    list_[end] = candidate;
  }

  ScoredBlock* list_;  // best first
  std::int64_t slots_;
  std::int64_t size_ = 0;
};

/// Writes a row of topk_indices: forced kv_blocks and those chosen, ascending, then -1.
void write_selection(const openmsa_tensor& topk_indices, std::int64_t head, std::int64_t row,
                     const Candidates& candidates, std::span<const ScoredBlock> chosen);

}  // namespace openmsa::cpu
