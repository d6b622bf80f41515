// Exp-free top-k: the running selection of one query and KV head.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "core/problem.h"

namespace openmsa::cpu {

/// Whether score a wins against b: NaN loses to every number, and nothing wins against its equal.
inline bool beats(float a, float b) { return !(a <= b) && !std::isnan(a); }

/// Which kv_blocks of one query row are forced, and which compete for the remaining slots.
struct Candidates {
  std::int64_t init;   // kv_blocks [0, init) are forced
  std::int64_t end;    // [init, end) compete
  std::int64_t local;  // [end, end + local) are forced: the last visible ones
  std::int64_t slots;  // for the competitors

  Candidates(const core::Plan& plan, std::int64_t position);
};

struct ScoredBlock {
  float score;
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
    } else if (slots_ > 0 && beats(candidate.score, list_[slots_ - 1].score)) {
      insert(candidate, slots_ - 1);
    }
  }

  /// A score that is <= this one would not be kept. NaN: any may be.
  float bar() const {
    return size_ < slots_ || slots_ == 0 ? std::numeric_limits<float>::quiet_NaN() : list_[slots_ - 1].score;
  }

  std::int64_t size() const { return size_; }
  const ScoredBlock* begin() const { return list_; }
  const ScoredBlock* end() const { return list_ + size_; }

 private:
  /// Places the candidate among the first `end` entries and itself; the entry at `end` is lost.
  void insert(ScoredBlock candidate, std::int64_t end) {
    for (; end > 0 && beats(candidate.score, list_[end - 1].score); --end) list_[end] = list_[end - 1];
    list_[end] = candidate;
  }

  ScoredBlock* list_;  // best first
  std::int64_t slots_;
  std::int64_t size_ = 0;
};

/// Writes a row of topk_indices: forced kv_blocks and the list, ascending, then -1.
void write_selection(const openmsa_tensor& topk_indices, std::int64_t head, std::int64_t row,
                     const Candidates& candidates, const TopkList& list);

}  // namespace openmsa::cpu
