// Which kv_blocks compete for a place in a query's selection, and a candidate, a kv_block with its score, as one number.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "core/plan.h"

namespace openmsa::core {

/// Which kv_blocks of one query row are forced, and which compete for the remaining slots.
struct Candidates {
  std::int64_t init;   // kv_blocks [0, init) are forced
  std::int64_t end;    // [init, end) compete
  std::int64_t local;  // [end, end + local) are forced: the last visible ones
  std::int64_t slots;  // for the competitors

  Candidates(const Plan& plan, std::int64_t position) {
    const openmsa_config& config = plan.config;
    const std::int64_t visible = position < 0 ? 0 : position / config.block_size + 1;
    local = std::min<std::int64_t>({config.num_local_blocks, config.topk, visible});
    end = visible - local;
    init = std::min<std::int64_t>({config.num_init_blocks, config.topk - local, end});
    slots = std::min<std::int64_t>(config.topk - local - init, end - init);
  }
};

/// An integer that orders scores: NaN below -inf, -0 equal to +0, both above INT32_MIN.
inline std::int32_t score_key(float score) {
  constexpr std::int32_t kMax = std::numeric_limits<std::int32_t>::max();
  if (std::isnan(score)) return -kMax;
  const auto bits = std::bit_cast<std::int32_t>(score + 0.0f);  // -0 + 0 = +0
  return bits < 0 ? bits ^ kMax : bits;
}

/// Score and kv_block: higher scores are greater, and so is the lower of two kv_blocks with equal scores. What
/// openmsa_tensors::candidates holds, and the CUDA backend's Ranked.
using Ranked = std::int64_t;
inline constexpr Ranked kNoCandidate = std::numeric_limits<Ranked>::min();

inline Ranked rank_of_key(std::int32_t key, std::int32_t block) {
  return static_cast<Ranked>(static_cast<std::uint64_t>(std::int64_t{key}) << 32 | static_cast<std::uint32_t>(~block));
}
inline std::int32_t block_of(Ranked ranked) { return ~static_cast<std::int32_t>(ranked & 0xffffffff); }

}  // namespace openmsa::core
