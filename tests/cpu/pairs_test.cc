// Products of bf16 in pairs: exact on small whole numbers, whatever the shape; and what attention makes of them where a
// pair has a key that a query does not see. Skipped where the CPU has no such products.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/dtype.h"
#include "cpu/tile/tile.h"
#include "support/compare.h"

namespace openmsa::test {
namespace {

using core::BFloat16;

class Pairs : public testing::Test {
 protected:
  void SetUp() override {
    if (ops_ == nullptr) GTEST_SKIP() << "this CPU has no products of bf16";
  }

  /// Whole numbers from -3 to 3.
  std::vector<BFloat16> whole_numbers(std::int64_t count) {
    std::vector<BFloat16> result;
    while (std::ssize(result) < count) {
      result.push_back(core::to_bfloat16(static_cast<float>(random_() % 7) - 3));
    }
    return result;
  }

  const cpu::PairOps* ops_ = cpu::pair_ops();
  std::mt19937_64 random_{1};
};

TEST_F(Pairs, MatmulSumsThePairsOfEveryShape) {
  for (const std::int64_t m : {1, 2, 5, 6, 7, 12, 13, 128}) {
    for (const std::int64_t n : {16, 32, 48, 64, 80}) {
      for (const std::int64_t pairs : {0, 1, 15, 16, 17, 33}) {
        SCOPED_TRACE(testing::Message() << m << " x " << n << " x " << pairs);
        const std::int64_t lda = 2 * pairs + 3, ldb = 2 * n + 5;
        const auto a = whole_numbers(m * lda), b = whole_numbers((pairs + 1) * ldb);
        std::vector<float> c(static_cast<std::size_t>(m * n), 2), top(static_cast<std::size_t>(n));
        ops_->matmul(m, n, pairs, {a.data(), lda, 2}, b.data(), ldb, c.data(), n, 0.5f, true);
        ops_->matmul_column_max(m, n, pairs, {a.data(), lda, 2}, b.data(), ldb, top.data());
        for (std::int64_t j = 0; j < n; ++j) {
          float best = -std::numeric_limits<float>::infinity();
          for (std::int64_t i = 0; i < m; ++i) {
            float sum = 0;
            for (std::int64_t p = 0; p < 2 * pairs; ++p) {
              sum += core::to_float(a[i * lda + p]) * core::to_float(b[p / 2 * ldb + 2 * j + p % 2]);
            }
            best = std::max(best, sum);
            ASSERT_EQ(c[i * n + j], 0.5f * (2 + sum)) << i << ' ' << j;
          }
          ASSERT_EQ(top[j], best) << j;
        }
      }
    }
  }
}

TEST_F(Pairs, ColumnMaxIgnoresNaN) {
  const std::vector<BFloat16> a = {{0x7fc0}, {0}, core::to_bfloat16(-2), {0}};  // rows NaN and -2
  const std::vector<BFloat16> b(32, core::to_bfloat16(1));
  std::vector<float> top(16);
  ops_->matmul_column_max(2, 16, 1, {a.data(), 2, 2}, b.data(), 32, top.data());
  EXPECT_EQ(top[0], -2);
  ops_->matmul_column_max(1, 16, 1, {a.data(), 2, 2}, b.data(), 32, top.data());
  EXPECT_EQ(top[15], -std::numeric_limits<float>::infinity());
}

TEST_F(Pairs, AnOddLastRowIsPairedWithZeros) {
  std::vector<float> tile(3 * 16);
  for (std::size_t i = 0; i < tile.size(); ++i) tile[i] = static_cast<float>(i);
  ops_->pair_tile(tile.data(), 16, 3, 16);
  const auto* pairs = reinterpret_cast<const BFloat16*>(tile.data());
  for (std::int64_t j = 0; j < 16; ++j) {
    EXPECT_EQ(core::to_float(pairs[2 * j]), static_cast<float>(j));
    EXPECT_EQ(core::to_float(pairs[2 * j + 1]), static_cast<float>(16 + j));
    EXPECT_EQ(core::to_float(pairs[32 + 2 * j]), static_cast<float>(32 + j));
    EXPECT_EQ(pairs[32 + 2 * j + 1].bits, 0);
  }
}

TEST_F(Pairs, NaNInALaterValueReachesNoEarlierQuery) {
  const Layer clean = make_layer({.dtype = OPENMSA_BFLOAT16, .seqlens_q = {77}, .seqlens_k = {77}});
  const TensorMap expected = run(clean, OPENMSA_OP_DENSE_ATTENTION);
  for (const std::int64_t poisoned : {50, 51}) {  // the first and the second key of a pair
    SCOPED_TRACE(poisoned);
    Layer layer = clean;
    Buffer& v = layer.tensors.at("v");
    const std::int64_t token = v.size() / layer.total_k();
    for (std::int64_t i = 0; i < token; ++i) v.set(poisoned * token + i, std::nan(""));
    const TensorMap got = run(layer, OPENMSA_OP_DENSE_ATTENTION);
    for (const char* name : {"o", "lse"}) {
      EXPECT_TRUE(rows(got.at(name), 0, poisoned).same_bits(rows(expected.at(name), 0, poisoned))) << name;
    }
    const Buffer seeing = rows(got.at("o"), poisoned, 1);
    EXPECT_TRUE(std::isnan(seeing[0]));
  }
}

}  // namespace
}  // namespace openmsa::test
