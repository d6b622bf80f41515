// A layer's keys in paged caches, and in fp8 with their scales.
#pragma once

#include "judge/layer.h"

namespace openmsa::judge {

/// Caches and block_table that hold the layer's keys, in pages of random order.
void add_pages(Layer& layer, std::uint64_t seed);

/// Contiguous index_k in fp8.
void round_index_k(Layer& layer, std::uint64_t seed);

}  // namespace openmsa::judge
