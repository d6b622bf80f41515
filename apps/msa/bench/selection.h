// Selections made up for timing the attend alone.
#pragma once

#include <openmsa/openmsa.hpp>
#include <vector>

#include "msa/bench/prefill/work.h"

namespace openmsa::cli {

/// topk_indices [num_heads_kv, total_q, topk], always with the local kv_block. Clustered: runs of 64 queries share
/// three quarters of their kv_blocks, the first and the local one among them; otherwise each query has its own.
std::vector<std::int32_t> made_up_selection(const Config& config, const std::vector<PrefillSequence>& sequences,
                                            bool is_clustered, std::uint64_t seed);

}  // namespace openmsa::cli
