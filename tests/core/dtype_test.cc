// Conversions between fp32 and the storage types of 16 and 8 bits, over every bit pattern.
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

TEST(Float8E4M3, HasTheValuesOfItsDefinition) {
  const auto value = [](std::uint8_t bits) { return to_float(Float8E4M3{bits}); };
  EXPECT_EQ(value(0x00), 0);
  EXPECT_EQ(value(0x01), 0x1p-9f);  // the least subnormal
  EXPECT_EQ(value(0x07), 0x7p-9f);
  EXPECT_EQ(value(0x08), 0x1p-6f);  // the least normal
  EXPECT_EQ(value(0x38), 1);
  EXPECT_EQ(value(0x3d), 1.625f);
  EXPECT_EQ(value(0xc6), -3.5f);
  EXPECT_EQ(value(0x7e), 448);
  EXPECT_TRUE(std::isnan(value(0x7f)));
  EXPECT_TRUE(std::isnan(value(0xff)));
  EXPECT_TRUE(std::signbit(value(0x80)));
}

TEST(Float8E4M3, EveryPatternSurvivesTheRoundTrip) {
  for (std::uint32_t bits = 0; bits <= 0xff; ++bits) {
    const float value = to_float(Float8E4M3{static_cast<std::uint8_t>(bits)});
    EXPECT_EQ(to_float8_e4m3(value).bits, std::isnan(value) ? 0x7f : bits);
    EXPECT_EQ(round_to<Float8E4M3>(double{value}).bits, std::isnan(value) ? 0x7f : bits);
  }
}

TEST(Float8E4M3, RoundsToNearestEven) {
  for (std::uint32_t bits = 0; bits < 0x7e; ++bits) {
    const float low = to_float(Float8E4M3{static_cast<std::uint8_t>(bits)});
    const float high = to_float(Float8E4M3{static_cast<std::uint8_t>(bits + 1)});
    const float middle = (low + high) / 2;
    const std::uint32_t even = bits % 2 == 0 ? bits : bits + 1;
    EXPECT_EQ(to_float8_e4m3(middle).bits, even);
    EXPECT_EQ(to_float8_e4m3(-middle).bits, 0x80u | even);
    EXPECT_EQ(to_float8_e4m3(std::nextafter(middle, 0.0f)).bits, bits);
    EXPECT_EQ(to_float8_e4m3(std::nextafter(middle, 1e9f)).bits, bits + 1);
    EXPECT_EQ(to_float8_e4m3(std::nextafter(low, 1e9f)).bits, bits);
    EXPECT_EQ(to_float8_e4m3(-std::nextafter(high, 0.0f)).bits, 0x80u | (bits + 1));
  }
}

TEST(Float8E4M3, SaturatesAndKeepsNan) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float large : {449.0f, 464.0f, 480.0f, 512.0f, 1e30f, std::numeric_limits<float>::max(), kInfinity}) {
    EXPECT_EQ(to_float8_e4m3(large).bits, 0x7e) << large;
    EXPECT_EQ(to_float8_e4m3(-large).bits, 0xfe) << large;
  }
  for (const float small : {0.0f, 1e-45f, 1e-38f, 0x1p-11f}) EXPECT_EQ(to_float8_e4m3(small).bits, 0x00) << small;
  EXPECT_EQ(to_float8_e4m3(std::nanf("")).bits, 0x7f);
  EXPECT_EQ(to_float8_e4m3(-std::nanf("")).bits, 0x7f);
}

}  // namespace
}  // namespace openmsa::core
