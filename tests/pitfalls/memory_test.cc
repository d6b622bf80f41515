// Where tensors lie in memory, and how sequences share a batch.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "pitfalls/fixture.h"
#include "support/compare.h"
#include "support/fused_rows.h"
#include "support/huge_memory.h"

namespace openmsa::test {
namespace {

using testing::Each;

class MemoryPitfalls : public Pitfalls {};
INSTANTIATE_TEST_SUITE_P(Backends, MemoryPitfalls, testing::Values(OPENMSA_BACKEND_REFERENCE, OPENMSA_BACKEND_CPU),
                         backend_name);

/// Pitfall 8: page number times stride in 32 bits.
TEST_P(MemoryPitfalls, OffsetsPast32BitsReachTheRightElements) {
  // Every row, page or head lies more than 2^31 elements from the next one.
  const Layer small = layer({.seqlens_q = {3}, .seqlens_k = {70}});
  Layer paged = layer({.page_size = 32, .seqlens_q = {3}, .seqlens_k = {70}});
  for (const bool is_paged : {false, true}) {
    const Layer& dense = is_paged ? paged : small;
    const TensorMap expected = run(dense, OPENMSA_OP_MSA_ATTENTION);
    TensorMap outputs = poisoned_outputs(dense, OPENMSA_OP_MSA_ATTENTION);
    Tensors tensors = gather(dense, OPENMSA_OP_MSA_ATTENTION, outputs);
    std::vector<HugeTensor> huge;
    const std::vector<openmsa_tensor Tensors::*> inputs =
        is_paged
            ? std::vector{&Tensors::q, &Tensors::index_q, &Tensors::k_cache, &Tensors::v_cache, &Tensors::index_k_cache}
            : std::vector{&Tensors::q, &Tensors::index_q};
    for (const auto member : inputs) huge.emplace_back(tensors.*member);
    std::vector<HugeTensor> results;
    for (const auto member : {&Tensors::o, &Tensors::topk_indices}) results.emplace_back(tensors.*member);
    for (const auto* tensor : {&huge, &results}) {
      for (const HugeTensor& each : *tensor) {
        if (!each.is_mapped()) GTEST_SKIP() << "the system does not lend enough address space";
      }
    }
    for (std::size_t i = 0; i < inputs.size(); ++i) tensors.*inputs[i] = huge[i].view();
    tensors.o = results[0].view();
    tensors.topk_indices = results[1].view();
    Workspace workspace;
    Plan(dense.config).run(OPENMSA_OP_MSA_ATTENTION, tensors, workspace);
    results[0].copy_to(outputs.at("o"));
    results[1].copy_to(outputs.at("topk_indices"));
    expect_same_bits(outputs, expected);
  }
}

/// Pitfall 8: more than 2^31 score elements.
TEST_P(MemoryPitfalls, ScoresPast32BitsReachTheRightElements) {
  Layer scored = layer({.seqlens_q = {3}, .seqlens_k = {200}});
  TensorMap outputs = run(scored, OPENMSA_OP_BLOCK_SCORES);
  Tensors tensors = gather(scored, OPENMSA_OP_BLOCK_SCORES, outputs);
  const HugeTensor scores(tensors.block_scores);
  if (!scores.is_mapped()) GTEST_SKIP() << "the system does not lend enough address space";
  tensors.block_scores = scores.view();
  Workspace workspace;
  const Plan plan(scored.config);
  plan.run(OPENMSA_OP_BLOCK_SCORES, tensors, workspace);
  Buffer copy(outputs.at("block_scores").dtype(), outputs.at("block_scores").shape());
  scores.copy_to(copy);
  EXPECT_TRUE(copy.same_bits(outputs.at("block_scores")));

  TensorMap chosen = poisoned_outputs(scored, OPENMSA_OP_TOPK);
  scored.add(std::move(outputs));
  Tensors choice = gather(scored, OPENMSA_OP_TOPK, chosen);
  choice.block_scores = scores.view();
  plan.run(OPENMSA_OP_TOPK, choice, workspace);
  expect_same_bits(chosen, run(scored, OPENMSA_OP_TOPK));
}

/// Pitfall 9: padded rows of a batch. The keys of the longer sequence are split, and empty parts are merged.
TEST_P(MemoryPitfalls, PaddedRowsOfABatchGiveZero) {
  // Requests of no keys, with table rows of -1, before, between and after real ones.
  for (const openmsa_op op : {OPENMSA_OP_MSA_ATTENTION, OPENMSA_OP_DENSE_ATTENTION, OPENMSA_OP_SPARSE_ATTENTION}) {
    for (const std::int64_t length : {77, 1500}) {
      Layer padded =
          layer({.page_size = 16, .seqlens_q = {1, 1, 3, 1}, .seqlens_k = {0, length, 0, 5}, .padding_q = 2});
      padded.add({{"topk_indices", Buffer(OPENMSA_INT32, {2, padded.total_q(), 4})}});
      padded.tensors.at("topk_indices").fill(-1);
      if (op == OPENMSA_OP_SPARSE_ATTENTION) {
        padded.tensors.at("topk_indices").set({0, 1, 0}, 2);
        padded.tensors.at("topk_indices").set({1, 5, 0}, 0);
      }
      TensorMap out = run(padded, op);
      for (const std::int64_t row : {0, 2, 3, 4, 6, 7}) {
        EXPECT_TRUE(is_zero(rows(out.at("o"), row, 1))) << "row " << row;
        EXPECT_THAT(rows(out.at("lse"), row, 1).values(), Each(-kInf)) << "row " << row;
        if (op == OPENMSA_OP_MSA_ATTENTION) {
          EXPECT_THAT(selection_row(out.at("topk_indices"), 1, row), Each(-1)) << "row " << row;
        }
      }
      EXPECT_TRUE(is_finite(out.at("o")));
      EXPECT_FALSE(is_zero(rows(out.at("o"), 1, 1)));
    }
  }
}

/// Pitfall 10: NaN in the tail of the last page, in pages that nobody owns, in page 0.
TEST_P(MemoryPitfalls, GarbageInTailsOtherPagesAndPageZeroIsNotUsed) {
  // make_layer fills all of these with NaN; with Inf and with zeros the results must be the same.
  const Layer paged = layer({.page_size = 16, .seqlens_q = {20, 1}, .seqlens_k = {70, 33}});
  const TensorMap expected = run(paged, OPENMSA_OP_MSA_ATTENTION);
  EXPECT_TRUE(is_finite(expected.at("o")));
  for (const double garbage : {kInf, -kInf, 0.0}) {
    expect_same_bits(run(with_garbage(paged, garbage), OPENMSA_OP_MSA_ATTENTION), expected);
  }
}

/// Pitfall 10: NaN in kv_blocks that nobody selected.
TEST_P(MemoryPitfalls, NanInBlocksThatNobodyChoseIsNotUsed) {
  Layer sparse = layer({.topk = 2, .seqlens_q = {20}, .seqlens_k = {200}});
  std::vector<std::int64_t> indices;
  for (std::int64_t row = 0; row < 40; ++row) indices.insert(indices.end(), {1, 4});
  sparse.add({{"topk_indices", int_buffer(indices, {2, 20, 2})}});
  const TensorMap expected = run(sparse, OPENMSA_OP_SPARSE_ATTENTION);
  for (const char* name : {"k", "v"}) {
    fill_rows(sparse.tensors.at(name), 0, 32, kNan);
    fill_rows(sparse.tensors.at(name), 64, 128, kInf);
    fill_rows(sparse.tensors.at(name), 160, 200, kNan);
  }
  expect_same_bits(run(sparse, OPENMSA_OP_SPARSE_ATTENTION), expected);
}

/// Pitfall 12: strides.
TEST_P(MemoryPitfalls, StridedInputsAndOutputs) {
  // Rows of a fused projection, heads with gaps, token-major indices, transposed lse.
  Layer packed = layer({.seqlens_q = {40, 9}, .seqlens_k = {40, 120}});
  const TensorMap expected = run(packed, OPENMSA_OP_MSA_ATTENTION);
  Layer strided = packed;
  TensorMap& in = strided.tensors;
  in["q"] = restrided(in["q"], {1000, 72, 1});
  in["k"] = restrided(in["k"], {64, 160 * 64, 1});  // head-major
  in["v"] = restrided(in["v"], {500, 130, 1});
  in["index_q"] = restrided(in["index_q"], {200, 100, 1});
  in["index_k"] = restrided(in["index_k"], {77, 1});
  in["cu_seqlens_q"] = restrided(in["cu_seqlens_q"], {3});
  const std::int64_t total_q = packed.total_q();
  TensorMap out = {{"o", Buffer::strided(OPENMSA_FLOAT32, {total_q, 4, 64}, {500, 100, 1})},
                   {"lse", Buffer::strided(expected.at("lse").dtype(), {total_q, 4}, {1, total_q + 5})},
                   {"topk_indices", Buffer::strided(OPENMSA_INT32, {2, total_q, 4}, {4, 11, 1})}};
  TensorMap untouched = out;
  run_into(strided, OPENMSA_OP_MSA_ATTENTION, out);
  for (const auto& [name, result] : out) {
    EXPECT_EQ(result.values(), expected.at(name).values()) << name;
    untouched.at(name).assign(result.values());  // gaps as they were before
    EXPECT_TRUE(result.same_bits(untouched.at(name))) << name << " was written between its elements";
  }
}

/// Pitfall 12, training.
TEST_P(MemoryPitfalls, StridedBackward) {
  Layer packed = layer({.seqlens_q = {40, 9}, .seqlens_k = {40, 120}});
  packed.add(run(packed, OPENMSA_OP_MSA_ATTENTION));
  Layer strided = packed;
  TensorMap& in = strided.tensors;
  for (const char* name : {"q", "o", "d_o"}) in[name] = restrided(in[name], {700, 75, 1});
  for (const char* name : {"k", "v"}) in[name] = restrided(in[name], {67, 160 * 67, 1});
  in["index_q"] = restrided(in["index_q"], {200, 100, 1});
  in["index_k"] = restrided(in["index_k"], {77, 1});
  in["lse"] = restrided(in["lse"], {1, 60});
  in["topk_indices"] = restrided(in["topk_indices"], {1, 11, 2});
  for (const openmsa_op op : {OPENMSA_OP_SPARSE_ATTENTION, OPENMSA_OP_SPARSE_ATTENTION_BACKWARD,
                              OPENMSA_OP_DENSE_ATTENTION_BACKWARD, OPENMSA_OP_KL_LOSS, OPENMSA_OP_BLOCK_RECALL}) {
    SCOPED_TRACE(op);
    const TensorMap expected = run(packed, op);
    TensorMap out = expected;
    for (auto& [name, result] : out) {
      Shape strides(result.shape().size(), 1);
      for (std::size_t d = strides.size(); d-- > 1;) strides[d - 1] = strides[d] * result.shape()[d] + 3;
      result = Buffer::strided(result.dtype(), result.shape(), strides);
    }
    run_into(strided, op, out);
    for (const auto& [name, result] : out) EXPECT_EQ(result.values(), expected.at(name).values()) << name;
  }
}

/// Pitfall 12: K and V as halves of one row, tokens or heads first.
TEST_P(MemoryPitfalls, KeysAndValuesAsHalvesOfOneBuffer) {
  for (const bool head_major : {false, true}) {
    const Layer separate = layer({.page_size = 16, .seqlens_q = {20, 1}, .seqlens_k = {70, 33}});
    TensorMap out = run(separate, OPENMSA_OP_MSA_ATTENTION);
    const TensorMap expected = out;
    Tensors tensors = gather(separate, OPENMSA_OP_MSA_ATTENTION, out);
    const Buffer rows = fused_rows(separate.tensors.at("k_cache"), separate.tensors.at("v_cache"), head_major);
    bind_halves(tensors, rows, rows.view().data);
    Workspace workspace;
    Plan(separate.config).run(OPENMSA_OP_MSA_ATTENTION, tensors, workspace);
    expect_same_bits(out, expected);
  }
}

/// Pitfall 12: pages of two requests.
TEST_P(MemoryPitfalls, RequestsMayShareTheirPrefixPages) {
  // Both requests hold the same 64 tokens in the same pages, then go separate ways.
  const CommonPrefix prefix(layer({.page_size = 32, .seqlens_q = {1, 1}, .seqlens_k = {90, 80}}), 2);
  expect_same_bits(run(prefix.shared, OPENMSA_OP_MSA_ATTENTION), run(prefix.copied, OPENMSA_OP_MSA_ATTENTION));
}

/// Pitfall 13: page sizes that are misread instead of refused.
TEST_P(MemoryPitfalls, PageSizesThatDoNotDivideTheBlockAreRefused) {
  Layer pages = layer({.block_size = 64, .seqlens_q = {1}, .seqlens_k = {64}});
  for (const std::int32_t page_size : {3, 24, 48, 128, -16}) {
    pages.config.page_size = page_size;
    EXPECT_THROW(Plan{pages.config}, Error) << page_size;
  }
}

/// Pitfall 13: pages of one token, once taken for pages of one kv_block.
TEST_P(MemoryPitfalls, PagesOfOneTokenAreReadAsTokens) {
  LayerShape shape{.seqlens_q = {3}, .seqlens_k = {150}};
  const TensorMap contiguous = run(layer(shape), OPENMSA_OP_MSA_ATTENTION);
  shape.page_size = 1;
  expect_same_bits(run(layer(shape), OPENMSA_OP_MSA_ATTENTION), contiguous);
}

/// Pitfall 14: a tile whose first kv_blocks belong to other queries: exp(-inf - -inf).
TEST_P(MemoryPitfalls, NeighbouringQueriesMayShareNoBlock) {
  // Whatever the size of a query tile: each row has its own two blocks, some none, and no row has the first blocks that
  // another one has.
  Layer tile = layer({.topk = 2, .seqlens_q = {16, 16}, .seqlens_k = {416, 32}});
  Buffer indices(OPENMSA_INT32, {2, 32, 2});
  indices.fill(-1);
  for (std::int64_t r = 0; r < 2; ++r) {
    for (std::int64_t t = 0; t < 16; ++t) {
      if (t % 5 == 4) continue;
      indices.set({r, t, 0}, static_cast<double>((t * 5 + r) % 12));
      indices.set({r, t, 1}, static_cast<double>((t * 5 + r + 6) % 12));
    }
  }
  tile.add({{"topk_indices", indices}});
  const TensorMap got = run(tile, OPENMSA_OP_SPARSE_ATTENTION);
  const TensorMap expected = run(tile.on(OPENMSA_BACKEND_REFERENCE), OPENMSA_OP_SPARSE_ATTENTION);
  EXPECT_LT(relative_error(got.at("o"), expected.at("o")), 1e-6);
  EXPECT_LT(absolute_error(got.at("lse"), expected.at("lse")), 1e-5);
}

/// Pitfall 14: tiles that straddle requests.
TEST_P(MemoryPitfalls, OddBatches) {
  // Requests without queries, shorter than a block, with fewer blocks than topk, straddling any tile.
  const Layer odd = layer({.topk = 16, .seqlens_q = {0, 1, 2, 0, 30, 63, 0}, .seqlens_k = {9, 1, 2, 0, 31, 64, 5}});
  const TensorMap got = run(odd, OPENMSA_OP_MSA_ATTENTION);
  const TensorMap expected = run(odd.on(OPENMSA_BACKEND_REFERENCE), OPENMSA_OP_MSA_ATTENTION);
  EXPECT_TRUE(got.at("topk_indices").same_bits(expected.at("topk_indices")));
  EXPECT_LT(relative_error(got.at("o"), expected.at("o")), 1e-6);
}

/// Pitfall 11: what a graph that is replayed, or a plan and a workspace that are used again, keeps of earlier lengths.
TEST_P(MemoryPitfalls, NothingIsLeftOfEarlierCalls) {
  const Layer largest = layer({.page_size = 16, .seqlens_q = {8, 8, 8}, .seqlens_k = {1200, 200, 100}});
  const Plan plan(largest.config);
  Workspace workspace;
  struct Lengths {
    std::vector<std::int64_t> q, k;
  };
  for (const auto& [q, k] : {Lengths{{8, 1, 0}, {1200, 50, 0}}, Lengths{{1, 1, 1}, {17, 200, 1}},
                             Lengths{{8, 8, 8}, {1200, 200, 100}}, Lengths{{0, 0, 1}, {0, 0, 5}}}) {
    const Layer changed = with_lengths(largest, q, k);
    for (const openmsa_op op : {OPENMSA_OP_MSA_ATTENTION, OPENMSA_OP_DENSE_ATTENTION}) {
      TensorMap outputs = poisoned_outputs(changed, op);
      plan.run(op, gather(changed, op, outputs), workspace);
      expect_same_bits(outputs, run(changed, op));
    }
  }
}

/// Pitfall 16: tensor parallel ranks hold one query and one index head each.
TEST_P(MemoryPitfalls, HeadsMayBeSplitBetweenRanks) {
  LayerShape shape{.num_heads_q = 3, .num_heads_kv = 3, .seqlens_q = {1, 20}, .seqlens_k = {1100, 90}};
  const Layer whole = layer(shape);
  const TensorMap expected = run(whole, OPENMSA_OP_MSA_ATTENTION);
  shape.num_heads_q = shape.num_heads_kv = 1;
  for (std::int64_t head = 0; head < 3; ++head) {
    Layer rank = layer(shape);
    const auto copy_head = [&](const Buffer& from, Buffer to) {
      const std::int64_t channels = from.size() / from.shape()[0] / 3;
      for (std::int64_t i = 0; i < to.size(); ++i) {
        to.set(i, from[(i / channels * 3 + head) * channels + i % channels]);
      }
      return to;
    };
    for (const char* name : {"q", "k", "v", "index_q"}) {
      rank.tensors[name] = copy_head(whole.tensors.at(name), rank.tensors.at(name));
    }
    rank.tensors["index_k"] = whole.tensors.at("index_k");
    const TensorMap got = run(rank, OPENMSA_OP_MSA_ATTENTION);
    for (const char* name : {"o", "lse"}) {
      EXPECT_TRUE(got.at(name).same_bits(copy_head(expected.at(name), got.at(name)))) << name << " of head " << head;
    }
    for (std::int64_t row = 0; row < rank.total_q(); ++row) {
      EXPECT_EQ(selection_row(got.at("topk_indices"), 0, row), selection_row(expected.at("topk_indices"), head, row));
    }
  }
}

}  // namespace
}  // namespace openmsa::test
