// Selections to attend over.
#pragma once

#include "support/run.h"

namespace openmsa::test {

/// topk_indices of every row: up to topk kv_blocks of the row's sequence in any order, later ones included, then -1.
Buffer random_selection(const Layer& layer, std::uint64_t seed);

/// Runs of 64 queries share three quarters of their kv_blocks, block 0 and their own among them.
Buffer clustered_selection(const Layer& layer, std::uint64_t seed);

}  // namespace openmsa::test
