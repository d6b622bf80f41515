#include "lm/ops/random.h"

#include <cmath>
#include <numbers>

namespace openmsa::lm {

std::uint64_t hash(std::uint64_t seed, std::string_view text) {
  std::uint64_t value = 0xcbf29ce484222325u;  // FNV-1a, then mixed with the seed
  for (const char character : text) value = (value ^ static_cast<unsigned char>(character)) * 0x100000001b3u;
  return Random(value ^ Random(seed).next()).next();
}

std::uint64_t Random::next() {
  std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

std::uint64_t Random::below(std::uint64_t bound) { return next() % bound; }

double Random::uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }

float Random::normal() {
  const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
  return static_cast<float>(radius * std::cos(2.0 * std::numbers::pi * uniform()));
}

}  // namespace openmsa::lm
