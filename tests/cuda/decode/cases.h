// The layers on which decode is compared: few query tokens per sequence behind many keys.
#pragma once

#include "support/shapes.h"

namespace openmsa::test {

/// `shape` with sequences of 1 to 16 queries whose lengths lie around the boundaries of a kv_block and of topk of them,
/// one without keys and one with fewer keys than queries, and rows of no sequence.
LayerShape decode_batch(LayerShape shape);

/// bf16 and fp16, every head_dim, index_dim, block_size, group size, page size and number of heads in some combination,
/// each as a decode_batch.
std::vector<NamedShape> decode_shapes();

/// Paged layers with fp8 caches of k and v, fp8 index keys, and both, each without a scale, with one, and with one per
/// token. How many queries the sequences have is the test's choice.
std::vector<NamedShape> fp8_decode_shapes();

}  // namespace openmsa::test
