// Choices of the portable kernels that change how long a call takes, and nothing else: each with its unit and its
// reason. What sizes a workspace may depend on the plan, not on the device; what decides between kernels may depend on
// shapes, not on values, so that a captured graph stays what it is.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/common/query_range.h"

namespace openmsa::cuda::sm80 {

/// Shared memory that a CTA may have on every GPU from sm_80 on: 8.6, 8.9 and 12.0 have no more. GPUs with more of it
/// run more CTAs beside each other.
inline constexpr std::int64_t kSharedBytes = 99 << 10;

constexpr std::int64_t covering(std::int64_t count, std::int64_t size) { return (count + size - 1) / size; }

// ---- Prompts or decode ----------------------------------------------------------------------------------------------

/// Shapes that the choice between kernels looks at.
struct CallShape {
  std::int64_t total_q;
  std::int64_t batch;
};

/// Who serves which sequences of a call. Shapes do not tell how its query tokens are shared out, so a mixture launches
/// both, and each takes the sequences in its range: one graph serves all mixtures.
struct Route {
  QueryRange decode;
  QueryRange prefill;
};

/// Query tokens of a sequence of a mixture up to which decode kernels serve it: there are too few of them for the rows
/// of a prompt's tile.
inline constexpr std::int32_t kDecodeQueries = 16;
/// Query tokens of a call up to which the launches of a mixture cost more than decode kernels lose.
inline constexpr std::int64_t kFewQueries = 64;

/// Whether decode serves all sequences of a call: a step that brings no more tokens than sequences, or few of both.
constexpr bool is_decode(const CallShape& call) {
  return call.total_q <= call.batch || (call.total_q <= kFewQueries && call.total_q <= kDecodeQueries * call.batch);
}

/// decode_queries: those of a sequence of a mixture that decode takes, at most.
constexpr Route route(const CallShape& call, std::int32_t decode_queries = kDecodeQueries) {
  if (decode_queries > 0 && is_decode(call)) return {kAllSequences, kNoSequences};
  if (decode_queries == 0 || call.batch <= 1) return {kNoSequences, kAllSequences};
  return {{1, decode_queries}, {decode_queries + 1, INT32_MAX}};
}

// ---- Index branch ---------------------------------------------------------------------------------------------------

/// Parts that the keys of a prompt's query tiles are cut into, at most, and (tile, part) items that a call wants at
/// most: two for every SM of the largest GPU.
inline constexpr std::int32_t kMaxSplits = 64;
inline constexpr std::int32_t kMostItems = 384;

/// Parts for `tiles` of them and so many kv_blocks in the longest sequence: fewer than 8 kv_blocks per part are not
/// worth the merge. Decided on the device, which alone knows how many tiles there are.
constexpr std::int32_t select_splits(std::int32_t tiles, std::int32_t blocks, std::int32_t items,
                                     std::int32_t most_splits) {
  constexpr std::int32_t kMinBlocks = 8;
  const std::int32_t wanted = items / (tiles > 0 ? tiles : 1), worthwhile = blocks / kMinBlocks;
  const std::int32_t splits = wanted < worthwhile ? wanted : worthwhile;
  return splits < 1 ? 1 : (splits < most_splits ? splits : most_splits);
}

/// Bytes of the scores that decode keeps in memory, about, at most.
inline constexpr std::int64_t kMostScoreBytes = std::int64_t{256} << 20;

/// Query tokens of a sequence that decode's index branch takes: as many as have room for their scores, query_bytes each,
/// in a batch of any size; 0: there is no room for calls of one each.
constexpr std::int32_t score_queries(std::int64_t query_bytes, std::int64_t max_batch) {
  const std::int64_t room =
      kMostScoreBytes / std::max<std::int64_t>(query_bytes * std::max(max_batch, kFewQueries / kDecodeQueries), 1);
  return static_cast<std::int32_t>(std::min<std::int64_t>(room, kDecodeQueries));
}

/// CTAs of decode's index branch on an SM: as many as GPUs with 227 KB of shared memory hold.
inline constexpr int kScoreCtasPerSm = 3;

// ---- Attention of prompts -------------------------------------------------------------------------------------------

/// Tiles of a schedule batch. row_bytes: of a query's partial results; max_tiles: that a call can have. Bounded in
/// bytes, and in rows so that its schedule stays short.
constexpr std::int64_t schedule_batch_tiles(std::int64_t row_bytes, std::int64_t tile_queries, std::int64_t max_tiles) {
  constexpr std::int64_t kPartialBytes = std::int64_t{960} << 20, kBatchRows = 16384;
  const std::int64_t rows = std::min(kBatchRows, kPartialBytes / row_bytes);
  return std::min(std::max<std::int64_t>(rows / tile_queries, 1), max_tiles);
}

/// Passes of a schedule batch through its kv_outer work, where kv_blocks are wanted often enough: the q of a pass, of
/// q_bytes in all, should stay in the L2 cache.
constexpr std::int64_t schedule_batch_passes(std::int64_t q_bytes, std::int64_t max_passes) {
  constexpr std::int64_t kPassBytes = 16 << 20;
  return std::clamp<std::int64_t>(covering(q_bytes, kPassBytes), 1, max_passes);
}

/// Schedule batches that are scheduled together, of all: enough to fill the device with the schedule's small kernels.
constexpr std::int64_t batches_at_once(std::int64_t batches) { return std::min<std::int64_t>(8, batches); }

/// Schedule batches whose kernels run beside each other: as many as have room for their partial results. A power of two.
constexpr std::int32_t batches_together(std::int64_t tiles, std::int64_t partial_tiles, std::int32_t most) {
  std::int32_t together = most;
  while (together > 1 && together * tiles > partial_tiles) together /= 2;
  return together;
}

/// CTAs of kv_outer on an SM: as many as GPUs with 227 KB of shared memory hold.
inline constexpr int kPromptCtasPerSm = 2;

/// Queries of a tile that must want a kv_block for q_outer to work it off: three quarters of them.
constexpr std::int32_t shared_threshold(std::int32_t tile_queries) { return std::max(2, tile_queries * 3 / 4); }

// ---- Attention of decode --------------------------------------------------------------------------------------------

/// CTAs that cut keys into parts, at most.
inline constexpr std::int64_t kMostDecodeCtas = 2048;

/// Parts of the keys of each of `rows` (query, KV head) pairs: chosen kv_blocks are as many for all, so that one round of
/// CTAs, two on an SM, is best, and no part of less than a kv_block; the histories of dense attention are not, and finer
/// parts even them out.
constexpr std::int32_t decode_splits(std::int64_t rows, std::int64_t num_sms, bool is_dense) {
  const std::int64_t ctas = std::min(kMostDecodeCtas, num_sms * (is_dense ? 8 : 2)), most = is_dense ? 64 : 16;
  return static_cast<std::int32_t>(std::clamp<std::int64_t>(ctas / std::max<std::int64_t>(rows, 1), 1, most));
}

/// Whether dense attention of a call goes by query rows, whose keys are cut into parts, and not by tiles of a prompt.
constexpr bool dense_is_decode(const CallShape& call) { return call.total_q <= kDecodeQueries * call.batch; }

}  // namespace openmsa::cuda::sm80
