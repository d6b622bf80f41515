// How index_q meets index keys in e4m3, on every backend: openmsa_index_q_rounding.
#include <gtest/gtest.h>

#include "pitfalls/fixture.h"
#include "support/compare.h"

namespace openmsa::test {
namespace {

class IndexQRounding : public OnBackend {
 protected:
  Layer fp8_layer(openmsa_index_q_rounding rounding, std::vector<std::int64_t> seqlens_q = {40, 1, 16}) const {
    return layer({.topk = 3,
                  .page_size = 32,
                  .seqlens_q = std::move(seqlens_q),
                  .seqlens_k = {40, 700, 333},
                  .index_dtype = OPENMSA_FLOAT8_E4M3,
                  .scales = Scales::kPerToken,
                  .index_q_rounding = rounding});
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, IndexQRounding, testing::ValuesIn(backends()), backend_test_name);

/// Powers of two, numbers between those of e4m3, what is too small for it or too large, and what is no number.
void make_odd(Buffer& index_q) {
  const double values[] = {1, 0x1p-9, 0x1p-10, 0x1.8p-10, 3.1, 448, 463, 465, 1000, -60000, kInf, -kInf, 0.07};
  for (std::int64_t i = 0; i < index_q.size(); i += 5) index_q.set(i, values[i / 5 % std::size(values)]);
  index_q.set(64 + 3, kNan);
}

/// An engine casts, or the library does.
TEST_P(IndexQRounding, QueriesThatComeInFp8AreThoseThatWouldBeCast) {
  Layer given = fp8_layer(OPENMSA_INDEX_Q_CAST);
  make_odd(given.tensors.at("index_q"));
  Layer cast = given;
  cast.tensors["index_q"] = given.tensors.at("index_q").as(OPENMSA_FLOAT8_E4M3);
  for (const openmsa_op op : {OPENMSA_OP_BLOCK_SCORES, OPENMSA_OP_SELECT_BLOCKS, OPENMSA_OP_MSA_ATTENTION}) {
    expect_same_bits(run(cast, op), run(given, op));
  }
}

/// Rows may lie apart, as parts of a wider one.
TEST_P(IndexQRounding, QueriesInFp8OfAnyStrides) {
  Layer packed = fp8_layer(OPENMSA_INDEX_Q_CAST);
  packed.tensors["index_q"] = packed.tensors.at("index_q").as(OPENMSA_FLOAT8_E4M3);
  Layer strided = packed;
  strided.tensors["index_q"] = restrided(packed.tensors.at("index_q"), {400, 80, 1});
  expect_same_bits(run(strided, OPENMSA_OP_SELECT_BLOCKS), run(packed, OPENMSA_OP_SELECT_BLOCKS));
}

/// What e4m3 holds is rounded by no rule, and the scale of a row is a power of two. So are those of the keys here, and
/// sums are exact in any order.
TEST_P(IndexQRounding, TheRulesAgreeWhereNothingIsRounded) {
  TensorMap results[3];
  for (const auto rounding : {OPENMSA_INDEX_Q_SCALED, OPENMSA_INDEX_Q_CAST, OPENMSA_INDEX_Q_EXACT}) {
    Layer plain = fp8_layer(rounding);
    Buffer& index_q = plain.tensors.at("index_q");
    for (std::int64_t i = 0; i < index_q.size(); ++i) index_q.set(i, static_cast<double>(i * 37 % 15 - 7) / 2);
    for (std::int64_t i = 0; i < index_q.size(); i += 64) index_q.set(i, 3.5);  // 448 / 128
    const auto replace = [&](const char* name, const auto& number) {
      Buffer& buffer = plain.tensors.at(name);
      for (std::int64_t i = 0; i < buffer.size(); ++i) {
        if (!std::isnan(buffer[i])) buffer.set(i, number(i));
      }
    };
    replace("index_k_cache", [](std::int64_t i) { return static_cast<double>(i * 29 % 13 - 6) / 2; });
    replace("index_k_scale", [](std::int64_t i) { return std::exp2(static_cast<double>(i % 5 - 2)); });
    results[rounding] = run(plain, OPENMSA_OP_BLOCK_SCORES);
  }
  expect_same_bits(results[OPENMSA_INDEX_Q_CAST], results[OPENMSA_INDEX_Q_SCALED]);
  expect_same_bits(results[OPENMSA_INDEX_Q_EXACT], results[OPENMSA_INDEX_Q_SCALED]);
}

/// Queries too small for e4m3 are all alike once they are cast, and are not where a scale, or no rounding, keeps them.
TEST_P(IndexQRounding, OnlyACastLosesSmallQueries) {
  for (const auto rounding : {OPENMSA_INDEX_Q_SCALED, OPENMSA_INDEX_Q_CAST, OPENMSA_INDEX_Q_EXACT}) {
    Layer small = fp8_layer(rounding);
    Buffer& index_q = small.tensors.at("index_q");
    for (std::int64_t i = 0; i < index_q.size(); ++i) index_q.set(i, index_q[i] * 0x1p-14);
    const Buffer scores = run(small, OPENMSA_OP_BLOCK_SCORES).at("block_scores");
    EXPECT_EQ(scores.at({0, 40, 0}) == 0, rounding == OPENMSA_INDEX_Q_CAST) << "rounding " << rounding;
  }
}

/// Which queries share a tile, and how the keys are split, changes no bit.
TEST_P(IndexQRounding, AQueryAloneScoresAsInABatch) {
  if (GetParam().id == OPENMSA_BACKEND_CUDA) GTEST_SKIP() << "its two ways may round scores differently";
  for (const auto rounding : {OPENMSA_INDEX_Q_CAST, OPENMSA_INDEX_Q_EXACT}) {
    const Layer many = fp8_layer(rounding, {40, 700, 333});
    const Buffer chosen = run(many, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices");
    Layer last = fp8_layer(rounding, {1, 1, 1});
    Buffer expected(OPENMSA_INT32, {2, 3, 3});
    for (std::int64_t b = 0, row = -1; b < 3; ++b) {
      row += many.shape.seqlens_q[static_cast<std::size_t>(b)];
      for (std::int64_t i = 0; i < 2 * 64; ++i) {
        last.tensors.at("index_q").set(b * 128 + i, many.tensors.at("index_q")[row * 128 + i]);
      }
      for (std::int64_t r = 0; r < 2; ++r) {
        for (std::int64_t slot = 0; slot < 3; ++slot) expected.set({r, b, slot}, chosen.at({r, row, slot}));
      }
    }
    for (const char* name : {"index_k_cache", "index_k_scale", "block_table"}) {
      last.tensors[name] = many.tensors.at(name);
    }
    EXPECT_TRUE(run(last, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices").same_bits(expected));
  }
}

}  // namespace
}  // namespace openmsa::test
