// How a decoder keeps its activations between operations.
#pragma once

#include <span>

#include "io/dtype.h"

namespace openmsa::lm {

/// kFp32: as computed. kBf16: rounded after every operation, at the places where PyTorch rounds when it runs a bf16
/// model in eager mode. Inside an operation everything is fp32: sums of products, norms, softmax, the router's sigmoid
/// and the sum over experts.
enum class Precision { kFp32, kBf16 };

/// Rounds to the nearest bf16, ties to even; NaN stays NaN.
inline float bf16_rounded(float x) { return io::to_float(io::to_bfloat16(x)); }

/// Rounds `values` in place, or does nothing in kFp32.
void round_to(Precision precision, std::span<float> values);

}  // namespace openmsa::lm
