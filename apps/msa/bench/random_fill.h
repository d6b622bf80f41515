// Tensors of random numbers in a backend's memory.
#pragma once

#include <openmsa/openmsa.h>

#include <cstdint>
#include <random>

#include "msa/device/device.h"

namespace openmsa::cli {

/// Uniform with variance 1, so that scores spread as those of normalised heads do.
class RandomNumbers {
 public:
  explicit RandomNumbers(std::uint64_t seed) : generator_(seed) {}
  float next() { return (static_cast<float>(generator_() >> 40) * 0x1p-23f - 1) * kLimit; }

 private:
  static constexpr float kLimit = 1.7320508f;
  std::mt19937_64 generator_;
};

/// Fills a contiguous tensor. What is longer than some million elements repeats them; their number is odd, so that the
/// same numbers meet other channels each time and no two of the first million keys are alike.
void fill_randomly(Device& device, const openmsa_tensor& tensor, std::uint64_t seed);

}  // namespace openmsa::cli
