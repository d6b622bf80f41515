// Scores and keys that are no ordinary numbers, in kv_blocks enough for every SM: equal ones, NaN, Inf, and what must
// not see them.
#include "cuda/decode/cases.h"
#include "cuda/support/device_call.h"
#include "cuda/support/hopper.h"
#include "pitfalls/fixture.h"
#include "support/compare.h"
#include "support/selections.h"

namespace openmsa::test {
namespace {

class DecodeValues : public OnHopperWith<std::int32_t> {
 protected:
  /// Sixteen, five and one queries; kv_blocks enough for every SM.
  static Layer layer(std::int32_t topk) {
    return device_layer({.dtype = OPENMSA_BFLOAT16,
                         .block_size = GetParam(),
                         .topk = topk,
                         .seqlens_q = {16, 1, 5},
                         .seqlens_k = {9000, 20001, 3 * GetParam() + 1}});
  }

  /// The same with scores of five levels, exact in every order of summation.
  static Layer with_levels() {
    Layer levels = layer(1);
    levels.tensors.at("index_q").fill(1);
    Buffer& index_k = levels.tensors.at("index_k");
    index_k.fill(0);
    std::mt19937_64 random(5);
    for (std::int64_t token = 0; token < index_k.shape()[0]; token += GetParam()) {
      index_k.set({token, 0}, static_cast<double>(random() % 5));
    }
    return levels;
  }

  static void expect_exact_selection(Layer layer) {
    for (const std::int32_t topk : {1, 3, 16, 17, 33, 64}) {
      SCOPED_TRACE(testing::Message() << "topk " << topk);
      layer.shape.topk = layer.config.topk = topk;
      expect_same_bits(run(layer, OPENMSA_OP_SELECT_BLOCKS),
                       judged(layer, OPENMSA_OP_SELECT_BLOCKS, OPENMSA_BACKEND_CPU));
    }
  }
};
INSTANTIATE_TEST_SUITE_P(BlockSizes, DecodeValues, testing::Values(64, 128), testing::PrintToStringParamName());

/// Nearly every place in the selection is decided between equal scores, within and across the
/// parts that the keys are split into.
TEST_P(DecodeValues, EqualScoresGoToTheLowerBlock) {
  Layer equal = with_levels();
  expect_exact_selection(equal);
  equal.tensors.at("index_k").fill(0);
  expect_exact_selection(equal);
  Layer zero = layer(1);
  zero.tensors.at("index_q").fill(0);
  expect_exact_selection(zero);
}

/// A token whose score is NaN loses inside its block; a block of nothing but such tokens loses to all others, also to
/// blocks of -Inf. The more blocks are bad, the more of them are chosen.
TEST_P(DecodeValues, NanAndInfScoresLoseAndWinAsOnTheCpu) {
  const double values[] = {kNan, kNan, -kInf, kInf};
  for (const std::uint64_t bad_eighths : {1, 5, 7}) {
    SCOPED_TRACE(testing::Message() << bad_eighths << "/8 of the kv_blocks are bad");
    Layer odd = with_levels();
    Buffer& index_k = odd.tensors.at("index_k");
    std::mt19937_64 random(6);
    for (std::int64_t token = 0; token + GetParam() <= index_k.shape()[0]; token += GetParam()) {
      if (random() % 8 < bad_eighths) {
        fill_rows(index_k, token, token + GetParam(), values[random() % 3]);
      } else {
        index_k.set({token + 9, 1}, values[random() % 4]);
      }
    }
    expect_exact_selection(odd);
  }
}

TEST_P(DecodeValues, NanInOneIndexQueryStaysThere) {
  for (const double value : {kNan, kInf, -kInf}) {
    Layer odd = layer(4);
    const Buffer before = run(odd, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices");
    fill_rows(odd.tensors.at("index_q"), 3, 4, value);
    const Buffer after = run(odd, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices");
    for (std::int64_t r = 0; r < 2; ++r) {
      for (std::int64_t row = 0; row < odd.total_q(); ++row) {
        const auto chosen = selection_row(after, r, row);
        if (row != 3) {
          ASSERT_EQ(chosen, selection_row(before, r, row)) << value << ", row " << row;
        } else {
          EXPECT_TRUE(chosen[0] >= 0 && std::is_sorted(chosen.begin(), chosen.end())) << value;
          EXPECT_EQ(chosen[3], odd.visible_blocks(row) - 1) << value;
        }
      }
    }
  }
}

/// Queries of one sequence whose choices a kernel may load together.
class DecodeNeighbours : public OnHopperWith<std::int32_t> {
 protected:
  static constexpr std::int64_t kQueries = 16, kKeys = 1500;

  /// Query t has kv_blocks t and t + 1 of the first kQueries + 1 of KV head 0, none when t is a multiple of 5.
  static Layer layer() {
    Layer layer = device_layer({.dtype = OPENMSA_BFLOAT16,
                                .num_heads_q = 8,
                                .block_size = GetParam(),
                                .topk = 3,
                                .seqlens_q = {kQueries},
                                .seqlens_k = {kQueries * GetParam() + kKeys}});
    Buffer indices = random_selection(layer, 2);
    for (std::int64_t row = 0; row < kQueries; ++row) {
      for (std::int64_t slot = 0; slot < 3; ++slot) {
        indices.set({0, row, slot}, row % 5 == 0 || slot == 2 ? -1 : static_cast<double>(row + 1 - slot));
      }
    }
    return layer.add({{"topk_indices", indices}});
  }

  static bool row_is_finite(const TensorMap& out, std::int64_t row) {
    for (std::int64_t i = 0; i < 4 * 64; ++i) {  // heads of KV head 0
      if (!std::isfinite(out.at("o")[row * 8 * 64 + i])) return false;
    }
    return true;
  }
};
INSTANTIATE_TEST_SUITE_P(BlockSizes, DecodeNeighbours, testing::Values(64, 128), testing::PrintToStringParamName());

TEST_P(DecodeNeighbours, MayShareNoBlock) { expect_attention(layer()); }

/// A NaN that came in goes out: zeros would hide it.
TEST_P(DecodeNeighbours, ANanInAQueryIsSeenThereAlone) {
  for (const openmsa_op op : {OPENMSA_OP_SPARSE_ATTENTION, OPENMSA_OP_DENSE_ATTENTION}) {
    SCOPED_TRACE(openmsa_op_name(op));
    Layer layer = DecodeNeighbours::layer();
    const TensorMap clean = run(layer, op);
    fill_rows(layer.tensors.at("q"), 7, 8, kNan);
    const TensorMap got = run(layer, op);
    for (const char* name : {"o", "lse"}) {
      for (const double value : rows(got.at(name), 7, 1).values()) ASSERT_TRUE(std::isnan(value)) << name;
      EXPECT_TRUE(rows(got.at(name), 0, 7).same_bits(rows(clean.at(name), 0, 7))) << name;
      EXPECT_TRUE(rows(got.at(name), 8, 8).same_bits(rows(clean.at(name), 8, 8))) << name;
    }
  }
}

TEST_P(DecodeNeighbours, DoNotSeeNanInEachOthersBlocks) {
  for (const char* name : {"k", "v"}) {
    for (const double garbage : {kNan, kInf}) {
      Layer odd = layer();
      const TensorMap before = run(odd, OPENMSA_OP_SPARSE_ATTENTION);
      const std::int64_t block = 8, owners[] = {7, 8};
      for (std::int64_t token = block * GetParam(); token < (block + 1) * GetParam(); ++token) {
        for (std::int64_t c = 0; c < 64; ++c) odd.tensors.at(name).set({token, 0, c}, garbage);
      }
      const TensorMap after = run(odd, OPENMSA_OP_SPARSE_ATTENTION);
      for (std::int64_t row = 0; row < kQueries; ++row) {
        SCOPED_TRACE(testing::Message() << garbage << " in " << name << ", query " << row);
        if (std::find(std::begin(owners), std::end(owners), row) != std::end(owners)) {
          EXPECT_FALSE(row_is_finite(after, row));
          continue;
        }
        for (std::int64_t i = row * 8 * 64; i < row * 8 * 64 + 4 * 64; ++i) {
          ASSERT_EQ(after.at("o")[i], before.at("o")[i]);
        }
        for (std::int64_t h = 0; h < 4; ++h) ASSERT_EQ(after.at("lse").at({row, h}), before.at("lse").at({row, h}));
      }
    }
  }
}

}  // namespace
}  // namespace openmsa::test
