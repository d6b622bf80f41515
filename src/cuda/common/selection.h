// Which kv_blocks of a query row are forced and which compete, on the device; the rules of spec and CPU backend.
#pragma once

#include <cstdint>

#include "cuda/common/batch_view.h"
#include "cuda/common/math.h"
#include "cuda/common/shard.h"

namespace openmsa::cuda {

struct SelectionRules {
  std::int32_t block_size;
  std::int32_t topk;
  std::int32_t num_init_blocks;
  std::int32_t num_local_blocks;
  Shard shard;                // whose kv_blocks are scored
  bool wants_scores = false;  // also of kv_blocks that all have a place
};

struct Candidates {
  std::int32_t init;   // kv_blocks [0, init) are forced
  std::int32_t end;    // [init, end) compete
  std::int32_t local;  // [end, end + local) are forced
  std::int32_t slots;  // for the competitors

  OPENMSA_DEVICE Candidates(const SelectionRules& rules, std::int32_t position) {
    const std::int32_t visible = position < 0 ? 0 : (position >> log2_of(rules.block_size)) + 1;
    local = least(least(rules.num_local_blocks, rules.topk), visible);
    end = visible - local;
    init = least(least(rules.num_init_blocks, rules.topk - local), end);
    slots = least(rules.topk - local - init, end - init);
  }

  /// Those that compete and are in the shard, by their numbers in it.
  OPENMSA_DEVICE Candidates of_shard(const Shard& shard) const {
    Candidates own = *this;
    own.init = shard.held(init);
    own.end = shard.held(end);
    own.slots = least(slots, own.end - own.init);
    return own;
  }
  /// Whether there are scores to look at: some lose or, with `wants_scores`, they are what is asked for.
  OPENMSA_DEVICE bool need_scores(bool wants_scores) const { return slots > 0 && (wants_scores || slots < end - init); }

 private:
  static OPENMSA_DEVICE std::int32_t least(std::int32_t a, std::int32_t b) { return a < b ? a : b; }
};

}  // namespace openmsa::cuda
