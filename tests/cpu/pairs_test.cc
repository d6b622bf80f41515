// Products of bf16 in pairs, by every instruction set that this CPU has: exact on small whole numbers, whatever the shape;
// and what attention makes of them where a pair has a key that a query does not see. Skipped where the CPU has none.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/dtype.h"
#include "cpu/tile/tile.h"
#include "support/compare.h"

namespace openmsa::test {
namespace {

using core::BFloat16;

/// Whole numbers from -3 to 3.
std::vector<BFloat16> whole_numbers(std::int64_t count, std::mt19937_64& random) {
  std::vector<BFloat16> result;
  while (std::ssize(result) < count) result.push_back(core::to_bfloat16(static_cast<float>(random() % 7) - 3));
  return result;
}

void test_matmul(const cpu::PairOps& ops) {
  std::mt19937_64 random(1);
  for (const std::int64_t m : {1, 2, 5, 6, 7, 12, 13, 16, 17, 31, 32, 33, 48, 50, 128}) {
    for (const std::int64_t n : {16, 32, 48, 64, 80}) {
      for (const std::int64_t pairs : {0, 16, 32, 48}) {
        SCOPED_TRACE(testing::Message() << m << " x " << n << " x " << pairs);
        const std::int64_t lda = 2 * pairs + 3, ldb = 2 * n + 5;
        const auto a = whole_numbers(m * lda, random), b = whole_numbers((pairs + 1) * ldb, random);
        std::vector<float> c(static_cast<std::size_t>(m * n), 2), top(static_cast<std::size_t>(n));
        ops.matmul(m, n, pairs, {a.data(), lda, 2}, b.data(), ldb, c.data(), n, 0.5f, true);
        ops.matmul_column_max(m, n, pairs, {a.data(), lda, 2}, b.data(), ldb, top.data());
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

/// A row of a tile that is the left operand of a product with the unit matrix.
void test_rounding(const cpu::PairOps& ops) {
  for (const std::int64_t m : {1, 2, 3, 16, 31, 32, 33, 128}) {
    for (const std::int64_t n : {16, 48}) {
      SCOPED_TRACE(testing::Message() << m << " x " << n);
      std::vector<float> tile(static_cast<std::size_t>(m * n));
      for (std::size_t i = 0; i < tile.size(); ++i) tile[i] = static_cast<float>(i % 251);
      std::vector<BFloat16> columns(static_cast<std::size_t>(cpu::pad_steps(m) * n), BFloat16{0x7fc0});
      std::vector<BFloat16> rows(static_cast<std::size_t>(cpu::pad_steps(n) * m), BFloat16{0x7fc0});
      const auto of_columns = ops.round_columns(tile.data(), n, m, n, nullptr, columns.data());
      std::vector<BFloat16> doubled_memory(columns.size());
      const std::vector<float> twice(static_cast<std::size_t>(m), 2);
      const auto doubled = ops.round_columns(tile.data(), n, m, n, twice.data(), doubled_memory.data());
      const auto of_rows = ops.round_rows(tile.data(), n, m, n, rows.data());
      const auto expected = [&](std::int64_t i, std::int64_t j) { return i < m && j < n ? tile[i * n + j] : 0; };
      for (std::int64_t j = 0; j < n; ++j) {
        for (std::int64_t i = 0; i < cpu::pad_steps(m); ++i) {
          const BFloat16 got = of_columns.data[j * of_columns.row + i / 2 * of_columns.column + i % 2];
          ASSERT_EQ(core::to_float(got), expected(i, j)) << i << ' ' << j;
          const BFloat16 other = doubled.data[j * doubled.row + i / 2 * doubled.column + i % 2];
          ASSERT_EQ(core::to_float(other), 2 * expected(i, j)) << i << ' ' << j;
        }
      }
      for (std::int64_t i = 0; i < m; ++i) {
        for (std::int64_t j = 0; j < cpu::pad_steps(n); ++j) {
          const BFloat16 got = of_rows.data[i * of_rows.row + j / 2 * of_rows.column + j % 2];
          ASSERT_EQ(core::to_float(got), expected(i, j)) << i << ' ' << j;
        }
      }
    }
  }
}

void test_nan(const cpu::PairOps& ops) {
  std::vector<BFloat16> a(64, BFloat16{0});  // rows NaN and -2
  a[0] = {0x7fc0};
  a[32] = core::to_bfloat16(-2);
  const std::vector<BFloat16> b(16 * 32, core::to_bfloat16(1));
  std::vector<float> top(16);
  ops.matmul_column_max(2, 16, 16, {a.data(), 32, 2}, b.data(), 32, top.data());
  EXPECT_EQ(top[0], -2);
  ops.matmul_column_max(1, 16, 16, {a.data(), 32, 2}, b.data(), 32, top.data());
  EXPECT_EQ(top[15], -std::numeric_limits<float>::infinity());
}

/// Rows of 32, 64 and 96 numbers, some of them apart.
void test_widening(const cpu::PairOps& ops) {
  for (const std::int64_t n : {32, 64, 96}) {
    SCOPED_TRACE(n);
    const std::int64_t m = 8, ld = n + 7;
    std::vector<core::Float8E4M3> codes(static_cast<std::size_t>(m * ld));
    for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = {static_cast<std::uint8_t>(i)};
    std::vector<BFloat16> wide(static_cast<std::size_t>(m * n));
    ops.widen_e4m3(codes.data(), ld, m, n, wide.data(), {});
    for (std::int64_t i = 0; i < m; ++i) {
      for (std::int64_t j = 0; j < n; ++j) {
        const float expected = core::to_float(codes[i * ld + j]), got = core::to_float(wide[i * n + j]);
        ASSERT_TRUE(std::isnan(expected) ? std::isnan(got) : got == expected) << i << ' ' << j << ": " << got;
      }
    }
  }
}

void test_pairing(const cpu::PairOps& ops) {
  std::mt19937_64 random(2);
  for (const std::int64_t m : {1, 2, 5, 16}) {
    const std::int64_t n = 48, ld = n + 3, pairs = (m + 1) / 2;
    const auto in = whole_numbers(m * ld, random);
    std::vector<BFloat16> out(static_cast<std::size_t>(pairs * 2 * n), BFloat16{0x7fc0});
    ops.pair_rows(in.data(), ld, m, n, out.data(), {});
    for (std::int64_t i = 0; i < 2 * pairs; ++i) {
      for (std::int64_t j = 0; j < n; ++j) {
        const float expected = i < m ? core::to_float(in[i * ld + j]) : 0;
        ASSERT_EQ(core::to_float(out[i / 2 * 2 * n + 2 * j + i % 2]), expected) << m << ": " << i << ' ' << j;
      }
    }
  }
}

void test_pairing_e4m3(const cpu::PairOps& ops) {
  for (const std::int64_t m : {1, 2, 7}) {
    for (const std::int64_t n : {32, 64, 96, 128}) {
      SCOPED_TRACE(testing::Message() << m << " x " << n);
      const std::int64_t ld = n + 5, pairs = (m + 1) / 2;
      std::vector<core::Float8E4M3> in(static_cast<std::size_t>(m * ld));
      for (std::size_t i = 0; i < in.size(); ++i) in[i] = {static_cast<std::uint8_t>(i * 7 % 127)};
      std::vector<BFloat16> out(static_cast<std::size_t>(pairs * 2 * n), BFloat16{0x7fc0});
      ops.pair_rows_e4m3(in.data(), ld, m, n, out.data(), {});
      for (std::int64_t i = 0; i < 2 * pairs; ++i) {
        for (std::int64_t j = 0; j < n; ++j) {
          const float expected = i < m ? core::to_float(in[i * ld + j]) : 0;
          ASSERT_EQ(core::to_float(out[i / 2 * 2 * n + 2 * j + i % 2]), expected) << i << ' ' << j;
        }
      }
    }
  }
}

class Pairs : public testing::Test {
 protected:
  void SetUp() override {
    if (cpu::all_pair_ops().empty()) GTEST_SKIP() << "this CPU has no products of bf16";
  }
  void TearDown() override { cpu::use_pair_ops(before_); }

  /// Runs body(ops) with each of the instruction sets in turn.
  template <class Body>
  void with_each(const Body& body) {
    for (const cpu::PairOps* ops : cpu::all_pair_ops()) {
      SCOPED_TRACE(ops->name);
      cpu::use_pair_ops(ops);
      body(*ops);
    }
  }

 private:
  const cpu::PairOps* before_ = cpu::pair_ops();
};

TEST_F(Pairs, MatmulSumsThePairsOfEveryShape) { with_each(test_matmul); }
TEST_F(Pairs, RoundingKeepsColumnsAndRowsAndPadsWithZeros) { with_each(test_rounding); }
TEST_F(Pairs, EveryE4M3NumberIsABf16Number) { with_each(test_widening); }
TEST_F(Pairs, RowsAreInterleavedAndTheLastOneWithZeros) { with_each(test_pairing); }
TEST_F(Pairs, RowsOfE4M3AreWidenedAndInterleaved) { with_each(test_pairing_e4m3); }
TEST_F(Pairs, ColumnMaxIgnoresNaN) { with_each(test_nan); }

void test_nan_in_values(const cpu::PairOps&) {
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

TEST_F(Pairs, NaNInALaterValueReachesNoEarlierQuery) { with_each(test_nan_in_values); }

}  // namespace
}  // namespace openmsa::test
