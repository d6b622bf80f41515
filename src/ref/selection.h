// The kv_blocks chosen by the queries of one sequence, and the tokens that they stand for.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "ref/arrays.h"

namespace openmsa::ref {

/// topk_indices of one sequence: [num_heads_kv, seqlen_q, topk], -1 in unused slots.
using Selection = Array<std::int32_t>;

inline Selection load_selection(const core::Problem& problem, const core::Sequence& sequence) {
  const openmsa_tensor& indices = problem.tensors.topk_indices;
  Selection result(indices.shape[0], sequence.seqlen_q, indices.shape[2]);
  for (std::int64_t r = 0; r < result.size(0); ++r) {
    for (std::int64_t t = 0; t < result.size(1); ++t) {
      for (std::int64_t slot = 0; slot < result.size(2); ++slot) {
        result(r, t, slot) = core::element<std::int32_t>(indices, r, sequence.q_begin + t, slot);
      }
    }
  }
  return result;
}

inline void store_selection(const core::Problem& problem, const core::Sequence& sequence, const Selection& selection) {
  for (std::int64_t r = 0; r < selection.size(0); ++r) {
    for (std::int64_t t = 0; t < selection.size(1); ++t) {
      for (std::int64_t slot = 0; slot < selection.size(2); ++slot) {
        core::element<std::int32_t>(problem.tensors.topk_indices, r, sequence.q_begin + t, slot) =
            selection(r, t, slot);
      }
    }
  }
}

/// Number of kv_blocks that hold a token at or before `position`.
inline std::int64_t visible_blocks(std::int64_t position, std::int64_t block_size) {
  return position < 0 ? 0 : position / block_size + 1;
}

/// The chosen kv_blocks of query t and head r that it can see and the plan's shard holds, ascending.
inline std::vector<std::int64_t> chosen_blocks(const core::Plan& plan, const core::Sequence& sequence,
                                               const Selection& selection, std::int64_t t, std::int64_t r) {
  const std::int64_t visible = visible_blocks(sequence.position(t), plan.config.block_size);
  std::vector<std::int64_t> blocks;
  for (std::int64_t slot = 0; slot < selection.size(2); ++slot) {
    const std::int64_t b = selection(r, t, slot);
    if (b >= 0 && b < visible && plan.holds(b)) blocks.push_back(b);
  }
  std::sort(blocks.begin(), blocks.end());
  return blocks;
}

/// T(t,r): the tokens at or before query t in its chosen kv_blocks, or all of them when there is no selection.
inline std::vector<std::int64_t> visible_tokens(const core::Plan& plan, const core::Sequence& sequence,
                                                const Selection* selection, std::int64_t t, std::int64_t r) {
  const std::int64_t position = sequence.position(t);
  const std::int64_t block_size = plan.config.block_size;
  std::vector<std::int64_t> tokens;
  if (selection == nullptr) {
    for (std::int64_t j = 0; j <= position; ++j) tokens.push_back(j);
    return tokens;
  }
  for (const std::int64_t b : chosen_blocks(plan, sequence, *selection, t, r)) {
    for (std::int64_t j = b * block_size; j < (b + 1) * block_size && j <= position; ++j) tokens.push_back(j);
  }
  return tokens;
}

}  // namespace openmsa::ref
