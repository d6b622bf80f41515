// Expectations on results, judged as judge/ does.
#pragma once

#include <gtest/gtest.h>

#include "judge/errors.h"
#include "judge/selection.h"
#include "judge/tolerance.h"
#include "support/run.h"

namespace openmsa::test {

/// Who judges where the reference would take long: the CPU backend, which the reference judges; for the CPU itself
/// the reference.
openmsa_backend quick_judge(const Layer& layer);

/// selection_faults finds none.
void expect_same_selection(const Layer& layer, const Buffer& topk_indices, const Buffer& reference,
                           const Buffer& block_scores);

/// `topk_indices` is what the backend `judge` selects, but for contenders that lie close together.
void expect_selection(const Layer& layer, const Buffer& topk_indices,
                      openmsa_backend judge = OPENMSA_BACKEND_REFERENCE);

/// Where both have them, o and lse lie within the tolerance of the layer's plan.
void expect_close(const Layer& layer, const TensorMap& got, const TensorMap& expected);

/// sparse_attention over the layer's topk_indices matches the judge's.
void expect_attention(const Layer& layer, openmsa_backend judge = OPENMSA_BACKEND_REFERENCE);

/// msa_attention: its selection is the judge's, its o and lse those of attention over its own selection.
void expect_layer(const Layer& layer, openmsa_backend judge = OPENMSA_BACKEND_REFERENCE);

/// Every tensor of both maps is the same, bit by bit.
void expect_same_bits(const TensorMap& x, const TensorMap& y);

}  // namespace openmsa::test
