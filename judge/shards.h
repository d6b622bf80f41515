// A layer's keys in shards, as several ranks hold them, and what the ranks send each other.
#pragma once

#include <vector>

#include "judge/layer.h"

namespace openmsa::judge {

/// The paged layer as rank `rank` of `count` has it: caches with the pages of its kv_blocks alone, in other places than
/// before, and NaN in one page of nobody. Entries of block_table that the shard does not need are no page numbers.
Layer shard_of(const Layer& layer, std::int32_t count, std::int32_t rank);

/// Buffers of one shape and dtype, contiguous, as the slices of one.
Buffer stacked(const std::vector<Buffer>& slices);

/// A candidate as openmsa.h has it, taken apart.
struct Candidate {
  bool is_none;
  double score;  // one that compares like the real one; NaN for NaN
  std::int64_t block;
};
Candidate decoded(std::int64_t candidate);

/// The candidates of one query and KV head in `candidates` [num_heads_kv, total_q, topk].
std::vector<Candidate> candidate_row(const Buffer& candidates, std::int64_t head, std::int64_t row);

/// Scores of all candidates, in the shape of these; -inf for none.
Buffer candidate_scores(const Buffer& candidates);

/// Scores of a backend's candidates to compare with `expected`. On CUDA those of a query and KV head lack a positive factor:
/// here it is the one that makes the largest magnitudes of finite scores equal.
Buffer comparable_scores(openmsa_backend backend, const Buffer& candidates, const Buffer& expected);

}  // namespace openmsa::judge
