// A shard of the kv_blocks of every sequence, and how its keys are counted (openmsa.h, "Shards"): kv_block b of a
// sequence is kv_block b / count of shard b % count.
//
//   a sequence  | 0 | 1 | 2 | 3 | 4 |
//   shard 0 of 2: 0       2       4      its kv_blocks 0, 1, 2
//   shard 1 of 2:     1       3          its kv_blocks 0, 1
#pragma once

#include <cstdint>

#include "cuda/common/device.h"
#include "cuda/common/math.h"

namespace openmsa::cuda {

/// Keys of a shard that neighbouring queries see: as many as fit in two kv_blocks, of which a shard holds one at most.
struct SeenKeys {
  std::int32_t of_first;  // not above 0: none
  std::int32_t from;      // queries after the first one that see no more than it does
  std::int32_t most;      // further keys

  /// Of query i.
  OPENMSA_DEVICE std::int32_t of(std::int32_t i) const {
    const std::int32_t more = i < from ? 0 : i - from;
    return of_first + (more < most ? more : most);
  }
};

struct Shard {
  std::int32_t count = 1;  // 1: all kv_blocks are held
  std::int32_t rank = 0;

  OPENMSA_DEVICE bool is_whole() const { return count == 1; }
  OPENMSA_DEVICE bool holds(std::int32_t block) const { return is_whole() || block % count == rank; }

  /// Those that are held of the first `blocks` kv_blocks.
  OPENMSA_DEVICE std::int32_t held(std::int32_t blocks) const {
    return is_whole() ? blocks : (blocks - rank + count - 1) / count;
  }
  /// The kv_block of the sequence that is the shard's `own`.
  OPENMSA_DEVICE std::int32_t block(std::int32_t own) const { return own * count + rank; }

  /// Those that are held of the first `keys` keys.
  OPENMSA_DEVICE std::int32_t held_keys(std::int32_t keys, std::int32_t block_size) const {
    if (is_whole() || keys <= 0) return keys;
    const int shift = log2_of(block_size);
    const std::int32_t whole = keys >> shift;
    return (held(whole) << shift) + (holds(whole) ? keys & (block_size - 1) : 0);
  }

  /// What up to block_size neighbouring queries see, of which the first stands at `position`.
  OPENMSA_DEVICE SeenKeys seen_keys(std::int32_t position, std::int32_t block_size) const {
    if (is_whole()) return {position + 1, 0, INT32_MAX};
    const std::int32_t block = position >> log2_of(block_size);  // rounded down
    const std::int32_t rest = block_size - 1 - (position & (block_size - 1));
    const std::int32_t seen = held_keys(position + 1, block_size);
    if (block >= 0 && holds(block)) return {seen, 0, rest};
    return {seen > 0 ? seen : 0, rest, block >= -1 && holds(block + 1) ? block_size : 0};
  }
};

}  // namespace openmsa::cuda
