// Conversions between fp32 and the 16-bit storage types, over every bit pattern.
#include "core/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace openmsa::core {
namespace {

TEST(BFloat16, EveryPatternSurvivesTheRoundTrip) {
  for (std::uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const float value = to_float(BFloat16{static_cast<std::uint16_t>(bits)});
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(to_float(to_bfloat16(value))));
    } else {
      ASSERT_EQ(to_bfloat16(value).bits, bits);
    }
  }
}

TEST(BFloat16, RoundsToNearestEven) {
  EXPECT_EQ(to_float(to_bfloat16(1 + 0x1p-8f)), 1);                       // a tie, down to even
  EXPECT_EQ(to_float(to_bfloat16(1 + 0x3p-8f)), 1 + 0x1p-6f);             // a tie, up to even
  EXPECT_EQ(to_float(to_bfloat16(1 + 0x1p-8f + 0x1p-20f)), 1 + 0x1p-7f);  // past the tie
  EXPECT_EQ(to_float(to_bfloat16(std::numeric_limits<float>::max())), std::numeric_limits<float>::infinity());
}

TEST(Float16, EveryPatternSurvivesTheRoundTrip) {
  for (std::uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const float value = to_float(Float16{static_cast<std::uint16_t>(bits)});
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(to_float(to_float16(value))));
    } else {
      ASSERT_EQ(to_float16(value).bits, bits);
    }
  }
}

/// Between each pair of neighbours: the midpoint goes to the even one, what lies beside it to the nearer one.
TEST(Float16, RoundsToNearestEven) {
  for (std::uint32_t bits = 0; bits < 0x7bff; ++bits) {
    const float low = to_float(Float16{static_cast<std::uint16_t>(bits)});
    const float high = to_float(Float16{static_cast<std::uint16_t>(bits + 1)});
    const float middle = (low + high) / 2;
    ASSERT_EQ(to_float16(middle).bits, bits % 2 == 0 ? bits : bits + 1);
    ASSERT_EQ(to_float16(std::nextafter(middle, 0.0f)).bits, bits);
    ASSERT_EQ(to_float16(std::nextafter(middle, 1e9f)).bits, bits + 1);
    ASSERT_EQ(to_float16(-middle).bits, 0x8000u | (bits % 2 == 0 ? bits : bits + 1));
  }
  EXPECT_EQ(to_float(to_float16(65519.0f)), 65504);
  EXPECT_EQ(to_float(to_float16(65520.0f)), std::numeric_limits<float>::infinity());
}

}  // namespace
}  // namespace openmsa::core
