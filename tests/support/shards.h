// Ranks with shards of a layer's keys, one after the other in this process, and what they send each other.
#pragma once

#include "judge/shards.h"
#include "support/run.h"

namespace openmsa::test {

/// The layer that merges what `count` shards have given: it has no keys of its own.
Layer merging(const Layer& layer, std::int32_t count);

/// Candidates of all ranks, [count, num_heads_kv, total_q, topk].
Buffer all_candidates(const Layer& layer, std::int32_t count);

/// What they merge to.
Buffer selection_of_shards(const Layer& layer, std::int32_t count);

/// A rank's attention over the layer's topk_indices: o, in fp32, and lse.
TensorMap part_of_shard(const Layer& shard);

/// The layer that merges these parts.
Layer with_parts(const Layer& layer, std::int32_t count);

}  // namespace openmsa::test
