// TileOps::transpose, whatever the instruction set makes of it.
#include <gtest/gtest.h>

#include <vector>

#include "cpu/tile/tile.h"

namespace openmsa::test {
namespace {

TEST(Transpose, EveryElementFindsItsPlace) {
  for (const std::int64_t m : {16, 32, 48}) {
    for (const std::int64_t n : {8, 16, 24, 64}) {
      SCOPED_TRACE(testing::Message() << m << " x " << n);
      const std::int64_t ldi = n + 3, ldo = m + 5;
      std::vector<float> in(static_cast<std::size_t>(m * ldi)), out(static_cast<std::size_t>(n * ldo), -1);
      for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i);
      cpu::tile_ops().transpose(in.data(), ldi, m, n, out.data(), ldo);
      for (std::int64_t j = 0; j < n; ++j) {
        for (std::int64_t i = 0; i < ldo; ++i) {
          ASSERT_EQ(out[j * ldo + i], i < m ? in[i * ldi + j] : -1) << i << ' ' << j;
        }
      }
    }
  }
}

}  // namespace
}  // namespace openmsa::test
