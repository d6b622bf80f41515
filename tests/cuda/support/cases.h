// The layers on which the CUDA backend is compared.
#pragma once

#include "cuda/support/hopper.h"
#include "cuda/support/selections.h"
#include "support/shapes.h"

namespace openmsa::test {

/// bf16 and fp16 with every head_dim, index_dim, block_size, group size, topk and page size that the kernels serve, on
/// a ragged batch like that of all_shapes().
std::vector<NamedShape> hopper_shapes();

/// Sequences that hold few blocks, one after the other, around every boundary of a kv_block.
LayerShape boundary_shape(std::int32_t block_size, std::int32_t page_size);

class HopperShapes : public OnHopperWith<NamedShape> {};

}  // namespace openmsa::test
