// How far two results lie apart, and what the specification allows.
#pragma once

#include <gtest/gtest.h>

#include "core/tolerance.h"
#include "support/layer.h"

namespace openmsa::test {

/// ||x - reference|| / ||reference||; infinite when one of them has a NaN or Inf. 0 / 0 is 0.
double relative_error(const Buffer& x, const Buffer& reference);

/// Largest |x - reference|; infinities must stand in the same places, else the result is infinite. NaN is infinite too.
double absolute_error(const Buffer& x, const Buffer& reference);

using core::Tolerance;
using core::tolerance;

/// The selection of one query and KV head as it was written, -1 included.
std::vector<std::int64_t> selection_row(const Buffer& topk_indices, std::int64_t r, std::int64_t row);

/// Rows of `topk_indices` are well formed (ascending, -1 padded, min(topk, visible) entries) and differ from
/// `reference` only where the float64 `scores` of the contenders are close.
void expect_same_selection(const Layer& layer, const Buffer& topk_indices, const Buffer& reference,
                           const Buffer& scores);

/// Every tensor of both maps is the same, bit by bit.
void expect_same_bits(const TensorMap& x, const TensorMap& y);

}  // namespace openmsa::test
