// Into how many parts the index branch of a prefill cuts the keys of its query tiles: a cut-off like those of
// heuristics.h, but decided on the device, which alone knows how many tiles there are.
#pragma once

#include <cstdint>

namespace openmsa::cuda::sm90::prefill {

/// (query tile, part of its keys) that a call wants at most: two for each of 132 SMs.
inline constexpr std::int32_t kSelectItems = 2 * 132;
inline constexpr std::int32_t kMaxSelectSplits = 128;

/// Parts that the keys of a tile of queries are cut into, for `tiles` of them and so many kv_blocks in the longest
/// sequence: fewer than 8 kv_blocks per part are not worth the merge. Decided on the device.
constexpr std::int32_t select_splits(std::int32_t tiles, std::int32_t blocks, std::int32_t most_splits) {
  constexpr std::int32_t kMinBlocksPerSplit = 8;
  const std::int32_t wanted = kSelectItems / (tiles > 0 ? tiles : 1), worthwhile = blocks / kMinBlocksPerSplit;
  const std::int32_t splits = wanted < worthwhile ? wanted : worthwhile;
  return splits < 1 ? 1 : (splits < most_splits ? splits : most_splits);
}

}  // namespace openmsa::cuda::sm90::prefill
