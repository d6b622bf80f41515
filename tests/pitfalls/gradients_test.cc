// Gradients of attention over packed documents, masked rows, kv_blocks with few owners, numbers that are not finite.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <utility>
#include <vector>

#include "pitfalls/fixture.h"
#include "support/compare.h"

namespace openmsa::test {
namespace {

using testing::ElementsAre;

constexpr openmsa_op kBackward[] = {OPENMSA_OP_SPARSE_ATTENTION_BACKWARD, OPENMSA_OP_DENSE_ATTENTION_BACKWARD};

class GradientPitfalls : public OnBackend {
 protected:
  /// In the shape's own dtype where the backend serves it.
  Layer layer(LayerShape shape) const {
    shape.block_size = block();
    if (GetParam().id == OPENMSA_BACKEND_CUDA) shape.dtype = GetParam().dtype;
    return make_layer(shape).on(GetParam().id);
  }
  /// Two documents of a kv_block and a few tokens each.
  LayerShape two_documents() const {
    return {.seqlens_q = {block() + 7, block() + 3}, .seqlens_k = {block() + 7, block() + 3}};
  }
  LayerShape two_documents_in_bf16() const {
    LayerShape shape = two_documents();
    shape.dtype = OPENMSA_BFLOAT16;
    return shape;
  }
  /// Through the teacher too, where the backend has that.
  TensorMap gradients_of(const Layer& layer, openmsa_op op) const {
    if (op != OPENMSA_OP_KL_LOSS || GetParam().id == OPENMSA_BACKEND_CUDA) return run(layer, op);
    return run(layer, op, {"kl_loss", "d_index_q", "d_index_k", "d_q", "d_k"});
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, GradientPitfalls, testing::ValuesIn(backends()), backend_test_name);

/// A layer with the tensors of its forward pass, ready for every backward.
Layer with_forward(Layer layer) { return layer.add(run(layer, OPENMSA_OP_MSA_ATTENTION)); }

void expect_same_rows(const TensorMap& got, const TensorMap& expected, std::int64_t first, std::int64_t count) {
  for (const auto& [name, gradient] : got) {
    EXPECT_TRUE(rows(gradient, first, count).same_bits(rows(expected.at(name), first, count))) << name;
  }
}

/// Pitfall 17: kv_blocks counted from the start of the buffer.
TEST_P(GradientPitfalls, PackedDocumentsStartAtTheirOwnBlockZero) {
  const Layer packed = layer(two_documents());
  const Buffer indices = run(packed, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices");
  const std::int64_t second = block() + 7;
  EXPECT_THAT(selection_row(indices, 0, second), ElementsAre(0, -1, -1, -1));               // its position 0
  EXPECT_THAT(selection_row(indices, 0, second + block() + 2), ElementsAre(0, 1, -1, -1));  // its last
}

/// Pitfall 17: left padding, as a sequence of its own, and documents behind others: each is as if it were alone. Its o
/// and lse may come from other kernels then; the gradients of the same o and lse are the same.
TEST_P(GradientPitfalls, WhereADocumentLiesDoesNotMatter) {
  LayerShape shape = two_documents();
  shape.seqlens_q.insert(shape.seqlens_q.begin(), 5);
  shape.seqlens_k = shape.seqlens_q;
  const Layer packed = with_forward(layer(shape));
  const TensorMap gradients = run(packed, OPENMSA_OP_SPARSE_ATTENTION_BACKWARD);
  std::int64_t first = 0;
  for (std::size_t b = 0; b < 3; ++b) {
    const std::int64_t length = packed.shape.seqlens_q[b];
    Layer alone = excerpt(packed, b, 0, length).on(GetParam().id);
    alone.tensors["d_o"] = rows(packed.tensors.at("d_o"), first, length);
    alone = with_forward(alone);
    const TensorMap saved = {{"o", rows(packed.tensors.at("o"), first, length)},
                             {"lse", rows(packed.tensors.at("lse"), first, length)}};
    expect_close(alone, {{"o", alone.tensors.at("o")}, {"lse", alone.tensors.at("lse")}}, saved);
    alone.add(saved);
    for (const auto& [name, gradient] : run(alone, OPENMSA_OP_SPARSE_ATTENTION_BACKWARD)) {
      EXPECT_TRUE(gradient.same_bits(rows(gradients.at(name), first, length))) << name << " of document " << b;
    }
    first += length;
  }
}

/// Pitfall 18: a mask that leaks: nothing of another document, nor of a later token, reaches a gradient, in bf16 too.
TEST_P(GradientPitfalls, MasksDoNotLeakInBf16) {
  const Layer clean = with_forward(layer(two_documents_in_bf16()));
  const std::int64_t first = block() + 7, second = block() + 3;
  for (const openmsa_op op : kBackward) {
    const TensorMap expected = run(clean, op);
    for (const double value : {1e30, kInf, kNan}) {
      SCOPED_TRACE(value);
      Layer other = clean;
      for (const char* name : {"q", "k", "v", "d_o"}) {
        fill_rows(other.tensors.at(name), first, first + second, value);
      }
      expect_same_rows(run(other, op), expected, 0, first);
    }
  }
}

/// Every gradient, over the selection or the history.
std::vector<std::pair<openmsa_op, const Layer*>> every_gradient(const Layer& chosen, const Layer& history) {
  return {{OPENMSA_OP_SPARSE_ATTENTION_BACKWARD, &chosen},
          {OPENMSA_OP_DENSE_ATTENTION_BACKWARD, &history},
          {OPENMSA_OP_KL_LOSS, &chosen},
          {OPENMSA_OP_KL_LOSS, &history},
          {OPENMSA_OP_MSA_ATTENTION_BACKWARD, &chosen}};
}

/// Keys after a query may be anything, in its own kv_block too: nothing of them, not even their size, reaches its gradient.
TEST_P(GradientPitfalls, KeysAfterAQueryDoNotMatterToIt) {
  const std::int64_t rows_before = 20, first = block() + rows_before;
  const Layer chosen = with_forward(layer({.seqlens_q = {block()}, .seqlens_k = {2 * block()}}));
  Layer history = chosen;  // what is chosen is everything
  history.tensors.erase("topk_indices");
  for (const auto& [op, clean] : every_gradient(chosen, history)) {
    const TensorMap expected = gradients_of(*clean, op);
    for (const double value : {1e30, kInf, kNan}) {
      SCOPED_TRACE(testing::Message() << openmsa_op_name(op) << " beside keys of " << value);
      Layer other = *clean;
      for (const char* name : {"k", "v", "index_k"}) {
        fill_rows(other.tensors.at(name), first, 2 * block(), value);
      }
      for (const auto& [name, gradient] : gradients_of(other, op)) {
        if (name != "d_q" && name != "d_index_q") continue;
        EXPECT_TRUE(rows(gradient, 0, rows_before).same_bits(rows(expected.at(name), 0, rows_before))) << name;
        EXPECT_FALSE(is_zero(rows(gradient, 0, rows_before))) << name;
      }
    }
  }
}

/// Nor does a query matter to keys after it, which it does not see.
TEST_P(GradientPitfalls, QueriesBeforeAKeyDoNotMatterToIt) {
  const std::int64_t spoiled = 20, first = block() + spoiled;
  const Layer clean = with_forward(layer({.seqlens_q = {block()}, .seqlens_k = {2 * block()}}));
  Layer history = clean;  // what is chosen is everything
  history.tensors.erase("topk_indices");
  for (const auto& [op, layer] : every_gradient(clean, history)) {
    const TensorMap expected = gradients_of(*layer, op);
    for (const double value : {1e30, kInf, kNan}) {
      SCOPED_TRACE(testing::Message() << openmsa_op_name(op) << " beside queries of " << value);
      Layer other = *layer;
      for (const char* name : {"q", "index_q", "d_o"}) fill_rows(other.tensors.at(name), 0, spoiled, value);
      for (const auto& [name, gradient] : gradients_of(other, op)) {
        if (name != "d_k" && name != "d_v" && name != "d_index_k") continue;
        const Buffer after = rows(gradient, first, block() - spoiled);
        EXPECT_TRUE(after.same_bits(rows(expected.at(name), first, block() - spoiled))) << name;
        EXPECT_FALSE(is_zero(after)) << name;
      }
    }
  }
}

/// A query that is not finite spoils its own gradient and those of the keys that it sees, no others.
TEST_P(GradientPitfalls, ANanStaysWithItsOwnQuery) {
  Layer clean = layer({.topk = 2, .seqlens_q = {20}, .seqlens_k = {6 * block() + 8}});
  clean.add({{"topk_indices", owned_blocks(20)}});
  clean.add(run(clean, OPENMSA_OP_SPARSE_ATTENTION));
  const TensorMap expected = run(clean, OPENMSA_OP_SPARSE_ATTENTION_BACKWARD);
  for (const std::string spoiled : {"q", "lse", "d_o", "o"}) {
    SCOPED_TRACE(spoiled);
    Layer layer = clean;
    fill_rows(layer.tensors.at(spoiled), 7, 8, kNan);
    if (spoiled == "q") layer.add(run(layer, OPENMSA_OP_SPARSE_ATTENTION));
    const TensorMap got = run(layer, OPENMSA_OP_SPARSE_ATTENTION_BACKWARD);
    EXPECT_TRUE(rows(got.at("d_q"), 0, 7).same_bits(rows(expected.at("d_q"), 0, 7)));
    EXPECT_TRUE(rows(got.at("d_q"), 8, 12).same_bits(rows(expected.at("d_q"), 8, 12)));
    const bool is_zero_probability = GetParam().id == OPENMSA_BACKEND_CPU && (spoiled == "q" || spoiled == "lse");
    if (!is_zero_probability) {  // its exponential of NaN
      for (const double value : rows(got.at("d_q"), 7, 1).values()) ASSERT_TRUE(std::isnan(value));
    }
    for (std::int64_t b = 0; b < 7; ++b) {
      const Buffer d_k = rows(got.at("d_k"), b * block(), b < 6 ? block() : 8);
      if (b != 1 && b != 4) {
        EXPECT_TRUE(is_zero(d_k)) << "kv_block " << b;
      } else if (!is_zero_probability) {
        EXPECT_FALSE(is_finite(d_k)) << "kv_block " << b;
      }
    }
  }
}

/// Pitfall 18: an additive mask of -inf that turns a fully masked row into NaN, which spreads.
TEST_P(GradientPitfalls, FullyMaskedRowsStayZeroInBf16) {
  // Five of the eight queries stand before the first key.
  Layer masked = with_forward(layer({.dtype = OPENMSA_BFLOAT16, .seqlens_q = {8}, .seqlens_k = {3}}));
  EXPECT_TRUE(is_zero(rows(masked.tensors.at("o"), 0, 5)));
  masked.tensors.at("lse") = masked.tensors.at("lse").as(OPENMSA_FLOAT32);
  for (const openmsa_op op : kBackward) {
    const TensorMap gradients = run(masked, op);
    for (const auto& [name, gradient] : gradients) EXPECT_TRUE(is_finite(gradient)) << name;
    EXPECT_TRUE(is_zero(rows(gradients.at("d_q"), 0, 5)));
    EXPECT_FALSE(is_zero(rows(gradients.at("d_q"), 7, 1)));
  }
}

/// A loss that uses lse where it is -inf (a z-loss squares it) has no number for a gradient there.
TEST_P(GradientPitfalls, AQueryThatSawNothingHasNoUseForAGradientIntoItsLse) {
  Layer masked = with_forward(layer({.seqlens_q = {8}, .seqlens_k = {3}}));
  Buffer& d_lse = masked.tensors["d_lse"] = Buffer(OPENMSA_FLOAT32, {8, 4});
  d_lse.fill(0.5);
  for (const openmsa_op op : kBackward) {
    const TensorMap expected = run(masked, op);
    Layer undefined = masked;
    fill_rows(undefined.tensors.at("d_lse"), 0, 5, kNan);
    expect_same_bits(run(undefined, op), expected);
  }
}

/// Pitfall 19: gradients of kv_blocks with no owner, one, and many.
TEST_P(GradientPitfalls, KeysThatNobodyChoseGetExactZeros) {
  // The last block is a tail of 8.
  Layer owned = layer({.topk = 2, .seqlens_q = {20}, .seqlens_k = {6 * block() + 8}});
  owned.add({{"topk_indices", owned_blocks(20)}});
  owned.add(run(owned, OPENMSA_OP_SPARSE_ATTENTION));
  const TensorMap gradients = run(owned, OPENMSA_OP_SPARSE_ATTENTION_BACKWARD);
  for (const char* name : {"d_k", "d_v"}) {
    for (std::int64_t b = 0; b < 7; ++b) {
      const Buffer gradient = rows(gradients.at(name), b * block(), b < 6 ? block() : 8);
      EXPECT_EQ(is_zero(gradient), b != 1 && b != 4) << name << " of kv_block " << b;
    }
  }
}

/// Keys with no query at all.
TEST_P(GradientPitfalls, WithoutQueriesEveryKeyGetsZero) {
  for (const openmsa_op op : kBackward) {
    Layer empty = layer({.seqlens_q = {0}, .seqlens_k = {70}});
    empty.add({{"topk_indices", Buffer(OPENMSA_INT32, {2, 0, 4})},
               {"o", Buffer(empty.config.dtype, {0, 4, 64})},
               {"lse", Buffer(OPENMSA_FLOAT32, {0, 4})}});
    const TensorMap gradients = run(empty, op);
    for (const char* name : {"d_k", "d_v"}) EXPECT_TRUE(is_zero(gradients.at(name))) << name;
  }
}

/// Pitfall 19: documents side by side. For races see Exactness.TwentyRunsAreEqual.
TEST_P(GradientPitfalls, DocumentsSideBySideDoNotMixTheirGradients) {
  const Layer both = with_forward(layer(two_documents()));
  const std::int64_t first = block() + 7, second = block() + 3;
  const TensorMap before = run(both, OPENMSA_OP_SPARSE_ATTENTION_BACKWARD);
  // The second document's d_o vanishes: the first one's gradients stay, the second one's become zero.
  Layer half = both;
  fill_rows(half.tensors.at("d_o"), first, first + second, 0);
  const TensorMap after = run(half, OPENMSA_OP_SPARSE_ATTENTION_BACKWARD);
  expect_same_rows(after, before, 0, first);
  for (const auto& [name, gradient] : after) EXPECT_TRUE(is_zero(rows(gradient, first, second))) << name;
}

/// Pitfall 12: strides, with which the rows of inputs stay aligned to 16 bytes.
TEST_P(GradientPitfalls, Strided) {
  Layer packed = layer({.seqlens_q = {40, 9}, .seqlens_k = {40, 120}});
  packed.add(run(packed, OPENMSA_OP_MSA_ATTENTION));
  std::mt19937_64 random(2);
  packed.tensors["d_lse"] = random_buffer(OPENMSA_FLOAT32, {49, 4}, random);
  Layer strided = packed;
  TensorMap& in = strided.tensors;
  for (const char* name : {"q", "o", "d_o"}) in[name] = restrided(in[name], {704, 80, 1});
  for (const char* name : {"k", "v"}) in[name] = restrided(in[name], {72, 160 * 72, 1});
  for (const char* name : {"lse", "d_lse"}) in[name] = restrided(in[name], {1, 60});
  in["topk_indices"] = restrided(in["topk_indices"], {1, 11, 2});
  for (const openmsa_op op : {OPENMSA_OP_SPARSE_ATTENTION, kBackward[0], kBackward[1]}) {
    for (const std::int64_t gap : {8, 3}) {
      if (op == OPENMSA_OP_SPARSE_ATTENTION && gap == 3 && GetParam().id == OPENMSA_BACKEND_CUDA) continue;
      SCOPED_TRACE(testing::Message() << "operation " << op << ", gaps of " << gap);
      const TensorMap expected = run(packed, op);
      TensorMap out = with_gaps(expected, gap);
      run_into(strided, op, out);
      for (const auto& [name, result] : out) EXPECT_EQ(result.values(), expected.at(name).values()) << name;
    }
  }
}

}  // namespace
}  // namespace openmsa::test
