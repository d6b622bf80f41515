// How a decoder keeps its activations between operations.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>

namespace openmsa::lm {

/// kFp32: as computed. kBf16: rounded after every operation, at the places where PyTorch rounds when it runs a bf16
/// model in eager mode. Inside an operation everything is fp32: sums of products, norms, softmax, the router's sigmoid
/// and the sum over experts.
enum class Precision { kFp32, kBf16 };

/// To the nearest bf16, ties to even; NaN stays NaN. Branch-free, so that loops over it vectorise.
[[gnu::always_inline]] inline float bf16_rounded(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);  // GCC 12 does not vectorise a loop with std::bit_cast
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  bits = is_nan ? bits | 0x400000u : (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u;
  std::memcpy(&x, &bits, sizeof bits);
  return x;
}

/// Rounds `values` in place, or does nothing in kFp32.
void round_to(Precision precision, std::span<float> values);

}  // namespace openmsa::lm
