// Keys along the lanes of vectors, for few query rows: the same scores as with query rows along them, bit by bit, and the
// same softmax.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "core/dtype.h"
#include "cpu/tile/tile.h"

namespace openmsa::test {
namespace {

using core::BFloat16;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN(), kInfinity = cpu::kInfinity;

std::vector<float> normal_numbers(std::int64_t count, unsigned seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> result;
  while (std::ssize(result) < count) result.push_back(normal(random));
  return result;
}

/// [columns][rows] to [rows][columns], padded to whole vectors with zeros; an element is `size` numbers.
template <class Element>
std::vector<Element> transposed(const std::vector<Element>& in, std::int64_t ld, std::int64_t rows,
                                std::int64_t columns, std::int64_t size) {
  const std::int64_t padded = cpu::pad_lanes(columns);
  std::vector<Element> result(static_cast<std::size_t>(rows * padded * size));
  for (std::int64_t j = 0; j < columns; ++j) {
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t e = 0; e < size; ++e) result[(i * padded + j) * size + e] = in[j * ld + i * size + e];
    }
  }
  return result;
}

/// Calls body(m, n, k) for shapes with and without a rest.
template <class Body>
void for_each_shape(std::int64_t steps, const Body& body) {
  for (const std::int64_t m : {1, 3, 4, 15, 16, 17, 33, 128}) {
    for (std::int64_t n = 1; n <= cpu::kFewRows; ++n) {
      for (const std::int64_t k : {steps, 3 * steps}) {
        SCOPED_TRACE(testing::Message() << m << " x " << n << " x " << k);
        body(m, n, k);
      }
    }
  }
}

void expect_same_bits(const std::vector<float>& by_rows, const std::vector<float>& by_columns, std::int64_t m,
                      std::int64_t n) {
  const std::int64_t lds = cpu::pad_lanes(m), ldc = cpu::pad_lanes(n);
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < n; ++j) ASSERT_EQ(by_rows[j * lds + i], by_columns[i * ldc + j]) << i << ' ' << j;
  }
}

TEST(FewRows, ProductsHaveTheBitsOfMatmul) {
  for_each_shape(4, [](std::int64_t m, std::int64_t n, std::int64_t k) {
    const std::int64_t lda = k + 5, ldq = k + 3, padded = cpu::pad_lanes(n);
    const std::vector<float> a = normal_numbers(m * lda, 1), q = normal_numbers(n * ldq, 2);
    const std::vector<float> b = transposed(q, ldq, k, n, 1);
    std::vector<float> c(static_cast<std::size_t>(m * padded)), s(static_cast<std::size_t>(n * cpu::pad_lanes(m)));
    cpu::tile_ops().matmul(m, padded, k, {a.data(), lda, 1}, b.data(), padded, c.data(), padded, false);
    cpu::tile_ops().row_products(m, n, k, {a.data(), lda, 1}, q.data(), ldq, s.data(), cpu::pad_lanes(m));
    expect_same_bits(s, c, m, n);
  });
}

TEST(FewRows, ProductsThatWidenTheirRightOperandHaveTheBitsOfMatmul) {
  for (const openmsa_dtype dtype : {OPENMSA_BFLOAT16, OPENMSA_FLOAT16}) {
    for_each_shape(4, [&](std::int64_t keys, std::int64_t n, std::int64_t steps) {
      const std::int64_t width = steps * cpu::kLanes, ldb = width + 8, lda = keys + 3;
      const std::vector<float> a = normal_numbers(n * lda, 8), values = normal_numbers(keys * ldb, 9);
      std::vector<std::byte> stored(2 * values.size());
      std::vector<float> b(values.size()), got(static_cast<std::size_t>(n * width), 0.5f), expected(got);
      cpu::tile_ops().narrow(dtype, values.data(), stored.data(), std::ssize(values));
      cpu::tile_ops().widen(dtype, stored.data(), b.data(), std::ssize(values), 1);
      for (const bool accumulate : {true, false}) {
        cpu::tile_ops().matmul(n, width, keys, {a.data(), lda, 1}, b.data(), ldb, expected.data(), width, accumulate);
        cpu::tile_ops().matmul_widened(n, width, keys, {a.data(), lda, 1}, dtype, stored.data(), ldb, got.data(), width,
                                       accumulate);
        ASSERT_EQ(got, expected);
      }
    });
  }
}

TEST(FewRows, ProductsOfPairsHaveTheBitsOfMatmul) {
  bool has_run = false;
  for (const cpu::PairOps* ops : cpu::all_pair_ops()) {
    if (!ops->rows_have_same_bits) continue;
    SCOPED_TRACE(ops->name);
    has_run = true;
    for_each_shape(cpu::kPairsPerStep, [&](std::int64_t m, std::int64_t n, std::int64_t pairs) {
      const std::int64_t lda = 2 * pairs + 6, ldq = 2 * pairs + 2, padded = cpu::pad_lanes(n);
      std::vector<BFloat16> a, q;
      for (const float x : normal_numbers(m * lda, 3)) a.push_back(core::to_bfloat16(x));
      for (const float x : normal_numbers(n * ldq, 4)) q.push_back(core::to_bfloat16(x));
      const std::vector<BFloat16> b = transposed(q, ldq, pairs, n, 2);
      std::vector<float> c(static_cast<std::size_t>(m * padded)), s(static_cast<std::size_t>(n * cpu::pad_lanes(m)));
      ops->matmul(m, padded, pairs, {a.data(), lda, 2}, b.data(), 2 * padded, c.data(), padded, 0.125f, false);
      ops->row_products(m, n, pairs, {a.data(), lda, 2}, q.data(), ldq, s.data(), cpu::pad_lanes(m), 0.125f);
      expect_same_bits(s, c, m, n);
    });
  }
  if (!has_run) GTEST_SKIP() << "this CPU has no such products of bf16";
}

TEST(FewRows, ProductsOfE4M3HaveTheBitsOfThoseOfBf16) {
  bool has_run = false;
  for (const cpu::PairOps* ops : cpu::all_pair_ops()) {
    SCOPED_TRACE(ops->name);
    has_run = true;
    for_each_shape(cpu::kPairsPerStep, [&](std::int64_t m, std::int64_t n, std::int64_t pairs) {
      const std::int64_t lda = 2 * pairs + 9, ldq = 2 * pairs, lds = cpu::pad_lanes(m);
      std::vector<core::Float8E4M3> codes;
      for (const float x : normal_numbers(m * lda, 6)) codes.push_back(core::to_float8_e4m3(x));
      std::vector<BFloat16> a, q;
      for (const core::Float8E4M3 code : codes) a.push_back(core::to_bfloat16(core::to_float(code)));
      for (const float x : normal_numbers(n * ldq, 7)) q.push_back(core::to_bfloat16(x));
      std::vector<float> expected(static_cast<std::size_t>(n * lds)), got(expected);
      ops->row_products(m, n, pairs, {a.data(), lda, 2}, q.data(), ldq, expected.data(), lds, 0.125f);
      ops->row_products_e4m3(m, n, pairs, {codes.data(), lda, 2}, q.data(), ldq, got.data(), lds, 0.125f);
      for (std::int64_t j = 0; j < n; ++j) {
        for (std::int64_t i = 0; i < m; ++i) ASSERT_EQ(got[j * lds + i], expected[j * lds + i]) << i << ' ' << j;
      }
    });
  }
  if (!has_run) GTEST_SKIP() << "this CPU has no such products of bf16";
}

/// Scores of 3 rows and 77 keys, of which the rows see all, some and none; with NaN, and rows of it.
struct Scores {
  static constexpr std::int64_t kKeys = 77, kRows = 3, kLd = 80, kColumns = 16;
  std::vector<float> rows = normal_numbers(kRows * kLd, 5);
  std::vector<float> columns = std::vector<float>(kKeys * kColumns);
  float limit[kColumns] = {kKeys, 18, 0};

  void put(std::int64_t row, std::int64_t key, float score) { rows[row * kLd + key] = score; }
  void make_columns() {
    for (std::int64_t i = 0; i < kKeys; ++i) {
      for (std::int64_t j = 0; j < kRows; ++j) columns[i * kColumns + j] = rows[j * kLd + i];
    }
  }
};

TEST(FewRows, MaximaIgnoreNaNAndWhatIsNotSeen) {
  Scores scores;
  scores.put(0, 5, kNaN);
  scores.put(0, 76, 100);
  scores.put(1, 18, 100);  // not seen
  scores.put(1, 0, 50);
  scores.make_columns();
  float by_rows[Scores::kColumns], by_columns[Scores::kColumns];
  cpu::tile_ops().row_max(scores.rows.data(), Scores::kLd, Scores::kKeys, Scores::kRows, scores.limit, by_rows);
  cpu::tile_ops().column_max(scores.columns.data(), Scores::kColumns, Scores::kKeys, Scores::kColumns, scores.limit,
                             by_columns);
  const float expected[] = {100, 50, -kInfinity};
  for (std::int64_t j = 0; j < Scores::kRows; ++j) {
    EXPECT_EQ(by_rows[j], expected[j]) << j;
    EXPECT_EQ(by_columns[j], expected[j]) << j;
  }
  for (std::int64_t i = 0; i < Scores::kKeys; ++i) scores.put(0, i, kNaN);
  cpu::tile_ops().row_max(scores.rows.data(), Scores::kLd, Scores::kKeys, 1, scores.limit, by_rows);
  EXPECT_EQ(by_rows[0], -kInfinity);
}

/// State of a softmax, for as many columns as a vector has.
struct State {
  float max[Scores::kColumns] = {0.5f, -kInfinity, -kInfinity};
  float sum[Scores::kColumns] = {2, 0, 0};
  float alpha[Scores::kColumns] = {};
};

TEST(FewRows, SoftmaxIsThatOfColumns) {
  Scores scores;
  scores.make_columns();
  State rows, columns;
  for (int step = 0; step < 2; ++step) {
    SCOPED_TRACE(step);
    std::vector<float> by_rows = scores.rows, by_columns = scores.columns;
    cpu::tile_ops().softmax_rows(by_rows.data(), Scores::kLd, Scores::kKeys, Scores::kRows, scores.limit, rows.max,
                                 rows.sum, rows.alpha, {});
    cpu::tile_ops().softmax_columns(by_columns.data(), Scores::kColumns, Scores::kKeys, Scores::kColumns, scores.limit,
                                    columns.max, columns.sum, columns.alpha, {});
    for (std::int64_t j = 0; j < Scores::kRows; ++j) {
      EXPECT_EQ(rows.max[j], columns.max[j]) << j;
      EXPECT_EQ(rows.alpha[j], columns.alpha[j]) << j;
      EXPECT_NEAR(rows.sum[j], columns.sum[j], 1e-5 * columns.sum[j]) << j;
      for (std::int64_t i = 0; i < Scores::kKeys; ++i) {
        ASSERT_EQ(by_rows[j * Scores::kLd + i], by_columns[i * Scores::kColumns + j]) << i << ' ' << j;
      }
    }
    EXPECT_EQ(rows.sum[2], 0) << "sees nothing";
  }
}

TEST(FewRows, SoftmaxOfNaNIsNaN) {
  Scores scores;
  scores.put(0, 40, kNaN);
  State state;
  cpu::tile_ops().softmax_rows(scores.rows.data(), Scores::kLd, Scores::kKeys, Scores::kRows, scores.limit, state.max,
                               state.sum, state.alpha, {});
  EXPECT_TRUE(std::isnan(state.sum[0]));
  EXPECT_FALSE(std::isnan(state.sum[1]));
}

}  // namespace
}  // namespace openmsa::test
