// Choices of training calls that change how long a call takes, and nothing else. Measured on an H200.
#pragma once

#include <algorithm>
#include <cstdint>

namespace openmsa::cuda::generic::training {

constexpr std::int64_t covering(std::int64_t count, std::int64_t size) { return (count + size - 1) / size; }

/// Workspace of a backward, about: below 2 GiB, with room for what is counted by sequences and kv_blocks.
inline constexpr std::int64_t kBackwardBytes = (std::int64_t{2} << 30) - (std::int64_t{48} << 20);
/// (row, KV head) places of a list batch that are taken even where keys alone need more than that.
inline constexpr std::int64_t kLeastBackwardPlaces = 8192;
/// Where a place takes memory for all kv_blocks of its history: KL over 1M keys.
inline constexpr std::int64_t kLeastHistoryPlaces = 128;

/// KV heads of a list batch: as many as have all their rows in it, while the sums of their keys, key_bytes for each, take
/// no more than half of the workspace.
constexpr std::int64_t backward_heads(std::int64_t num_heads_kv, std::int64_t max_total_q, std::int64_t max_rows,
                                      std::int64_t key_bytes) {
  const std::int64_t by_rows = max_rows / std::max<std::int64_t>(max_total_q, 1);
  const std::int64_t by_keys = kBackwardBytes / 2 / std::max<std::int64_t>(key_bytes, 1);
  return std::max<std::int64_t>(std::min({num_heads_kv, by_rows, by_keys}), 1);
}

/// Rows of a range of a list batch, about: the q, d_o and d_q of so many stay in the L2 cache. Of a selection it is so
/// many more that a kv_block has kRangeVisits visits in it, on average.
inline constexpr std::int64_t kLeastRangeRows = 4096;
inline constexpr std::int64_t kDenseRangeRows = 2048;
inline constexpr std::int64_t kRangeVisits = 64;

/// A multiple of 128. `blocks`: kv_blocks of all sequences; max_rows: of a list batch.
constexpr std::int64_t list_range_rows(std::int64_t blocks, std::int64_t topk, std::int64_t max_rows) {
  const std::int64_t wanted = std::min(kRangeVisits * blocks / topk, max_rows);
  return std::max(covering(wanted, 128) * 128, kLeastRangeRows);
}

/// Rows of each list batch of a call, at most max_rows: as even as can be.
constexpr std::int64_t list_batch_rows(std::int64_t total_q, std::int64_t max_rows) {
  return covering(total_q, std::max<std::int64_t>(covering(total_q, max_rows), 1));
}

}  // namespace openmsa::cuda::generic::training
