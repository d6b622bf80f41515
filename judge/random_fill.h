// Tensors of random numbers in any memory.
#pragma once

#include <openmsa/openmsa.h>

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "judge/copy.h"

namespace openmsa::judge {

/// Uniform with variance 1, so that scores spread as those of normalised heads do.
class RandomNumbers {
 public:
  explicit RandomNumbers(std::uint64_t seed) : generator_(seed) {}
  float next() { return (static_cast<float>(generator_() >> 40) * 0x1p-23f - 1) * kLimit; }

 private:
  static constexpr float kLimit = 1.7320508f;
  std::mt19937_64 generator_;
};

/// The bytes of `values`, each rounded to a float dtype.
std::vector<std::byte> rounded(openmsa_dtype dtype, const std::vector<float>& values);

/// Fills a contiguous tensor through `copy`. What is longer than some million elements repeats them; their number is
/// odd, so that the same numbers meet other channels each time and no two of the first million keys are alike.
void fill_randomly(const Copy& copy, const openmsa_tensor& tensor, std::uint64_t seed);

}  // namespace openmsa::judge
