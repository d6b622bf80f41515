// Random numbers that depend on nothing but their seed: no hidden state, the same on every machine.
#pragma once

#include <cstdint>
#include <string_view>

namespace openmsa::lm {

/// A stable 64-bit hash of `text`, different for every seed.
std::uint64_t hash(std::uint64_t seed, std::string_view text);

/// SplitMix64 (Steele, Lea, Flood 2014).
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next();
  std::uint64_t below(std::uint64_t bound);  // uniform in [0, bound); bias below bound / 2^64
  double uniform();                          // [0, 1)
  float normal();                            // mean 0, standard deviation 1

 private:
  std::uint64_t state_;
};

}  // namespace openmsa::lm
