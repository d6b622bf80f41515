// e4m3 by arithmetic, number by number, against the conversions of the other backends.
#include "cuda/sm80/tile/e4m3.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <random>

#include "core/dtype.h"

namespace openmsa::test {
namespace {

using cuda::sm80::round_to_e4m3;
using cuda::sm80::SmallHalves;

float from_e4m3(std::uint32_t byte) { return core::to_float(core::Float8E4M3{static_cast<std::uint8_t>(byte)}); }

void expect_same(float got, float expected) {
  if (std::isnan(expected)) {
    EXPECT_TRUE(std::isnan(got));
  } else {
    EXPECT_EQ(std::bit_cast<std::uint32_t>(got), std::bit_cast<std::uint32_t>(expected)) << got << " " << expected;
  }
}

TEST(PortableE4m3, EveryPairBecomesHalvesOfTheSameValue) {
  for (std::uint32_t two = 0; two < 1 << 16; ++two) {
    const SmallHalves small(two);
    for (int i = 0; i < 2; ++i) {
      const auto bits = static_cast<std::uint16_t>(small.halves >> 16 * i);
      const auto nan = static_cast<std::uint16_t>(small.nan >> 16 * i);
      const float half = core::to_float(core::Float16{bits}) * 256;
      expect_same(nan != 0 ? core::to_float(core::Float16{static_cast<std::uint16_t>(bits | nan)}) : half,
                  from_e4m3(two >> 8 * i & 0xff));
    }
    if (HasFailure()) return;
  }
}

TEST(PortableE4m3, NumbersOfE4m3AndWhatLiesHalfwayRoundToEven) {
  for (std::uint32_t byte = 0; byte < 0x7e; ++byte) {
    const float low = from_e4m3(byte), high = from_e4m3(byte + 1), middle = (low + high) / 2;
    expect_same(round_to_e4m3(low), low);
    expect_same(round_to_e4m3(-low), -low);
    expect_same(round_to_e4m3(middle), byte % 2 == 0 ? low : high);
    expect_same(round_to_e4m3(std::nextafter(middle, 0.0f)), low);
    expect_same(round_to_e4m3(-std::nextafter(middle, 1e9f)), -high);
  }
}

TEST(PortableE4m3, AnyNumberRoundsAsElsewhere) {
  std::mt19937 random(1);
  for (int i = 0; i < 1 << 20; ++i) {
    const float x = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    expect_same(round_to_e4m3(x), core::to_float(core::to_float8_e4m3(x)));
    if (HasFailure()) return;
  }
  for (const float x : {449.0f, 464.0f, 480.0f, 1e30f, INFINITY, 0x1p-10f, 0x1.1p-10f, 0x1p-149f}) {
    expect_same(round_to_e4m3(x), core::to_float(core::to_float8_e4m3(x)));
  }
}

}  // namespace
}  // namespace openmsa::test
