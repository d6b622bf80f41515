// How large the parts are that a call is divided into: every cut-off of the CPU backend, each with its reason. All
// follow from shapes and capacities alone, so that no result depends on the machine or on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/problem.h"

namespace openmsa::cpu {

/// A division into fewer items than this leaves threads idle at the end of a loop.
inline constexpr std::int64_t kItemsToShare = 64;

/// Queries per tile of gradients and figures: at most 64, and at most 512 query rows of one KV head, so that what a
/// tile keeps per row stays in the L2 cache.
inline std::int64_t queries_per_tile(const core::Plan& plan) {
  return std::clamp<std::int64_t>(512 / plan.group_size, 1, 64);
}

/// The forward pass keeps less per query, and the larger a tile, the more of its queries share a kv_block: up to 4096
/// query rows of one KV head.
inline std::int64_t max_forward_queries(const core::Plan& plan) {
  return std::clamp<std::int64_t>(4096 / plan.group_size, 1, 1024);
}

/// Queries per tile of the forward pass: as many as leave kItemsToShare tiles of a sequence.
inline std::int64_t forward_queries_per_tile(const core::Plan& plan, const core::Sequence& sequence) {
  const std::int64_t queries = sequence.seqlen_q * plan.config.num_heads_kv / kItemsToShare;
  return std::clamp(queries, queries_per_tile(plan), max_forward_queries(plan));
}

/// Queries per tile of dense prompts: 256 query rows, whose queries and running sums, and two kv_blocks, this one and the
/// next, fit into the L2 cache.
inline std::int64_t dense_queries_per_tile(const core::Plan& plan) {
  return std::max<std::int64_t>(256 / plan.group_size, 1);
}

/// Queries per tile of the index branch, with all KV heads at once: 256 columns of a product fill the vector registers
/// and leave the keys in the L2 cache.
inline std::int64_t index_queries_per_tile(const core::Plan& plan) {
  return std::clamp<std::int64_t>(256 / plan.config.num_heads_kv, 1, 128);
}

// Few queries over many keys (decode): the keys are split into segments, whose results are merged.

/// Sequences with more queries than this have tiles enough to share out and are not split.
inline constexpr std::int64_t kMaxDecodeQueries = 16;

inline bool is_decode(const core::Sequence& sequence) { return sequence.seqlen_q <= kMaxDecodeQueries; }

/// Most segments of one sequence under this plan: enough to make kItemsToShare items of a full batch. Beyond 32 the
/// merge costs what the split gains.
inline std::int64_t max_segments(const core::Plan& plan) {
  return std::clamp<std::int64_t>(kItemsToShare / plan.config.max_batch, 1, 32);
}

/// Segments of a sequence, of at least 4 kv_blocks each.
inline std::int64_t num_segments(const core::Plan& plan, const core::Sequence& sequence) {
  constexpr std::int64_t kMinBlocks = 4;
  if (!is_decode(sequence)) return 1;
  const std::int64_t blocks = core::ceil_div(sequence.seqlen_k, plan.config.block_size);
  return std::clamp<std::int64_t>(blocks / kMinBlocks, 1, max_segments(plan));
}

/// Keys of a tile of dense decode: so many that two tiles of all heads' k and v, this one and the next, leave the L2
/// cache room; a multiple of 16.
inline std::int64_t decode_keys_per_tile(const core::Plan& plan) {
  constexpr std::int64_t kTileBytes = 128 << 10;
  const std::int64_t token_bytes = 2 * plan.config.num_heads_kv * plan.config.head_dim *
                                   static_cast<std::int64_t>(openmsa_dtype_bytes(plan.config.kv_dtype));
  return std::clamp<std::int64_t>(kTileBytes / token_bytes, 16, 128) / 16 * 16;
}

/// How long the parts of a step of attention take beside each other, in cycles per key, about, for `columns` query rows:
/// what memory is fetched meanwhile is shared out so. `speed` is that of products beside those in fp32; few columns have
/// their keys along the lanes.
struct StepTimes {
  std::int64_t load_k;  // 0 where keys are multiplied as they lie
  std::int64_t load_v;
  std::int64_t scores;
  std::int64_t softmax;
  std::int64_t values;
};
inline StepTimes step_times(const core::Plan& plan, std::int64_t columns, bool are_few, std::int64_t speed) {
  const std::int64_t dim = plan.config.head_dim, padded = core::ceil_div(columns, 16) * 16;
  const bool is_widened = plan.config.kv_dtype != plan.config.dtype || plan.config.dtype == OPENMSA_FLOAT16;
  StepTimes times{};
  times.load_k = is_widened ? dim / 6 : 0;
  times.load_v = plan.config.kv_dtype == OPENMSA_FLOAT32 ? 0 : dim / 6;
  times.scores = (are_few ? dim * (5 + columns) / (16 * speed) : dim * padded / (20 * speed)) + 1;
  times.softmax = are_few ? columns : padded;
  times.values = dim * columns / ((are_few ? 16 : 25) * speed) + 1;
  return times;
}

/// Whether attention of prompts fetches what its next step needs: with products as fast as those of AMX a step is too short
/// for its list of rows, and the processor finds them sooner itself.
inline bool fetches_ahead(std::int64_t speed) { return speed < 8; }

/// Keys, about, whose values dense decode adds up one by one: a longer sum would lose digits of what it has.
inline constexpr std::int64_t kDecodeRunKeys = 1024;

}  // namespace openmsa::cpu
