// The selection that a model's index branch makes when its keys lie in an fp8 cache.
#pragma once

#include "lm/model/attention_ops.h"

namespace openmsa::lm {

/// Stores the first `rows` index keys in e4m3 with one scale each and selects for as many queries of the same sequence.
/// Writes topk_indices, [num_heads_kv, rows, topk].
void select_with_fp8_index(const ModelConfig& model, std::int64_t rows, const AttentionActivations& activations,
                           const Tensor& topk_indices);

}  // namespace openmsa::lm
