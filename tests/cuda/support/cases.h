// The layers of prompts on which the CUDA backend is compared.
#pragma once

#include "support/shapes.h"

namespace openmsa::test {

/// bf16 and fp16 with every head_dim, index_dim, block_size, group size, topk and page size that the kernels serve, on
/// a ragged batch like that of all_shapes().
std::vector<NamedShape> hopper_shapes();

/// Those with fp8 index keys, without a scale, with one, and with one per token.
std::vector<NamedShape> fp8_index_shapes();

/// Those with fp8 caches of k and v, in pages.
std::vector<NamedShape> fp8_kv_shapes();

/// A ragged batch, long enough that most pairs of query and kv_block find partners in other tiles.
LayerShape many_blocks(openmsa_dtype dtype, std::int32_t group_size, std::int32_t head_dim);

}  // namespace openmsa::test
