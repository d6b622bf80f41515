// From storage to fp32 with the best instruction set of the machine.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "core/dtype.h"
#include "cpu/tile/tile.h"

namespace openmsa::test {
namespace {

TEST(WidenE4M3, EveryCodeInEveryLane) {
  constexpr std::int64_t kCodes = 256;
  for (std::int64_t shift = 0; shift < 17; ++shift) {
    for (const std::int64_t count : {kCodes, kCodes - 1, kCodes - 9, std::int64_t{3}}) {
      std::byte codes[kCodes];
      float values[kCodes + 1];
      for (std::int64_t i = 0; i < kCodes; ++i) codes[i] = static_cast<std::byte>((i + shift) % kCodes);
      values[count] = -1;
      cpu::tile_ops().widen(OPENMSA_FLOAT8_E4M3, codes, values, count, 1);
      for (std::int64_t i = 0; i < count; ++i) {
        const float expected = core::to_float(core::Float8E4M3{static_cast<std::uint8_t>(codes[i])});
        ASSERT_EQ(std::isnan(values[i]), std::isnan(expected)) << "code " << static_cast<int>(codes[i]);
        if (std::isnan(expected)) continue;
        ASSERT_EQ(values[i], expected) << "code " << static_cast<int>(codes[i]);
        ASSERT_EQ(std::signbit(values[i]), std::signbit(expected));
      }
      ASSERT_EQ(values[count], -1);
    }
  }
}

TEST(WidenRows, EveryTypeAsRowByRow) {
  constexpr std::int64_t kRows = 5, kCount = 37, kLd = 40, kBytes = 200;
  std::byte stored[kRows * kBytes];
  for (std::size_t i = 0; i < sizeof stored; ++i) stored[i] = static_cast<std::byte>(i * 37 % 120);
  for (const openmsa_dtype dtype : {OPENMSA_FLOAT32, OPENMSA_BFLOAT16, OPENMSA_FLOAT16, OPENMSA_FLOAT8_E4M3}) {
    SCOPED_TRACE(dtype);
    std::vector<float> rows(kRows * kLd, -1), row(kCount);
    cpu::tile_ops().widen_rows(dtype, stored, kBytes, kRows, rows.data(), kLd, kCount, 0.5f, {});
    for (std::int64_t i = 0; i < kRows; ++i) {
      cpu::tile_ops().widen(dtype, stored + i * kBytes, row.data(), kCount, 0.5f);
      for (std::int64_t j = 0; j < kLd; ++j) ASSERT_EQ(rows[i * kLd + j], j < kCount ? row[j] : -1) << i << ' ' << j;
    }
  }
}

}  // namespace
}  // namespace openmsa::test
