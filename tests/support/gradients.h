// Gradients of attention, judged.
#pragma once

#include "support/run.h"

namespace openmsa::test {

/// The gradient of sparse_attention or dense_attention.
inline openmsa_op backward_of(openmsa_op forward) {
  return forward == OPENMSA_OP_DENSE_ATTENTION ? OPENMSA_OP_DENSE_ATTENTION_BACKWARD
                                               : OPENMSA_OP_SPARSE_ATTENTION_BACKWARD;
}

inline bool is_backward(openmsa_op op) {
  return op == OPENMSA_OP_SPARSE_ATTENTION_BACKWARD || op == OPENMSA_OP_DENSE_ATTENTION_BACKWARD;
}

/// The layer with o, in the plan's dtype, and lse of `judge`.
Layer with_forward(Layer layer, openmsa_op forward, openmsa_backend judge = OPENMSA_BACKEND_REFERENCE);

/// d_q, d_k and d_v lie within the tolerance of the layer's plan of those that `judge` gives from the same o and lse.
void expect_gradients(const Layer& layer, openmsa_op forward, openmsa_backend judge = OPENMSA_BACKEND_REFERENCE);

}  // namespace openmsa::test
