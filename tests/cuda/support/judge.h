// Results of the GPU against another backend on the same inputs.
#pragma once

#include "cuda/support/device_call.h"
#include "support/compare.h"

namespace openmsa::test {

/// run() on the backend `judge`, with o in fp32.
TensorMap judged(const Layer& layer, openmsa_op op, openmsa_backend judge = OPENMSA_BACKEND_REFERENCE);

/// `topk_indices` is what the judge selects, but for contenders that lie close together.
void expect_selection(const Layer& layer, const Buffer& topk_indices,
                      openmsa_backend judge = OPENMSA_BACKEND_REFERENCE);

/// Where both have them, o and lse lie within the tolerance of the layer's dtype.
void expect_close(const Layer& layer, const TensorMap& got, const TensorMap& expected);

/// sparse_attention over the layer's topk_indices on the GPU matches the judge's.
void expect_attention(const Layer& layer, openmsa_backend judge = OPENMSA_BACKEND_REFERENCE);

/// msa_attention on the GPU: its selection is the judge's, its o and lse those of attention over its own selection.
void expect_layer(const Layer& layer, openmsa_backend judge = OPENMSA_BACKEND_REFERENCE);

}  // namespace openmsa::test
