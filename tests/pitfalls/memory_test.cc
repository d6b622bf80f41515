// Where tensors lie in memory, and how sequences share a batch.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "pitfalls/fixture.h"
#include "support/compare.h"
#include "support/fused_rows.h"
#include "support/selections.h"

namespace openmsa::test {
namespace {

using testing::Each;

class MemoryPitfalls : public OnBackend {
 protected:
  bool is_cuda() const { return GetParam().id == OPENMSA_BACKEND_CUDA; }

  /// A prompt, a decode step and a chunk behind a prefix.
  Layer prompts(std::int32_t page_size) const {
    return layer({.num_heads_q = 8, .page_size = page_size, .seqlens_q = {150, 1, 20}, .seqlens_k = {150, 610, 333}});
  }
  /// Few queries of every sequence, one of them without keys.
  Layer decode(std::int32_t page_size) const {
    return layer({.num_heads_q = 16,
                  .head_dim = 128,
                  .index_dim = 128,
                  .topk = 3,
                  .page_size = page_size,
                  .seqlens_q = {4, 1, 16, 1},
                  .seqlens_k = {700, 1610, 529, 0},
                  .padding_q = 2});
  }
  /// Both in small pages and in large ones.
  std::vector<Layer> paged_layers() const { return {prompts(16), prompts(block()), decode(16), decode(block())}; }

  /// msa_attention of `strided` into outputs with gaps gives what it gives of `packed`, and leaves the gaps alone.
  void expect_same_with_gaps(const Layer& strided, const Layer& packed) const {
    const TensorMap expected = run(packed, OPENMSA_OP_MSA_ATTENTION);
    const Shape& o = expected.at("o").shape();
    const std::int64_t topk = packed.shape.topk, dim = o[2] + 8;
    TensorMap got = {
        {"o", Buffer::strided(expected.at("o").dtype(), o, {o[1] * dim + 16, dim, 1})},
        {"lse", Buffer::strided(expected.at("lse").dtype(), {o[0], o[1]}, {1, o[0] + 5})},            // transposed
        {"topk_indices", Buffer::strided(OPENMSA_INT32, {2, o[0], topk}, {topk, 2 * topk + 3, 1})}};  // token-major
    TensorMap untouched = got;
    run_into(strided, OPENMSA_OP_MSA_ATTENTION, got);
    for (const auto& [name, result] : got) {
      EXPECT_EQ(result.values(), expected.at(name).values()) << name;
      untouched.at(name).assign(result.values());  // gaps as they were before
      EXPECT_TRUE(result.same_bits(untouched.at(name))) << name << " was written between its elements";
    }
    Layer chosen = strided;
    chosen.add({{"topk_indices", got.at("topk_indices")}});
    expect_same_bits(run(chosen, OPENMSA_OP_SPARSE_ATTENTION), {{"o", expected.at("o")}, {"lse", expected.at("lse")}});
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, MemoryPitfalls, testing::ValuesIn(backends()), backend_test_name);

/// Pitfall 9: padded rows of a batch. The keys of the longer sequence are split, and empty parts are merged.
TEST_P(MemoryPitfalls, PaddedRowsOfABatchGiveZero) {
  // Requests of no keys, with table rows of -1, before, between and after real ones.
  for (const openmsa_op op : {OPENMSA_OP_MSA_ATTENTION, OPENMSA_OP_SPARSE_ATTENTION, OPENMSA_OP_DENSE_ATTENTION}) {
    for (const std::int64_t length : {2 * block() + 22, 1500}) {
      Layer padded =
          layer({.page_size = 16, .seqlens_q = {1, 1, 3, 1}, .seqlens_k = {0, length, 0, 5}, .padding_q = 2});
      Buffer indices(OPENMSA_INT32, {2, padded.total_q(), 4});
      indices.fill(-1);
      indices.set({0, 1, 0}, 2);
      indices.set({1, 5, 0}, 0);
      padded.add({{"topk_indices", indices}});
      const TensorMap out = run(padded, op);
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

/// Pitfall 9: batches of nothing but padding, with keys that nobody asks about and without.
TEST_P(MemoryPitfalls, BatchesWithoutWorkGiveZero) {
  const auto expect_zero = [](const Layer& idle) {
    const TensorMap out = run(idle, OPENMSA_OP_MSA_ATTENTION);
    EXPECT_TRUE(is_zero(out.at("o")));
    EXPECT_THAT(out.at("lse").values(), Each(-kInf));
    EXPECT_THAT(out.at("topk_indices").values(), Each(-1));
  };
  for (const std::int64_t seqlen_k : {0, 100}) {
    expect_zero(layer({.seqlens_q = {0, 0}, .seqlens_k = {seqlen_k, 0}, .padding_q = 40}));
  }
  for (const std::size_t batch : {1, 16, 300}) {
    using Lengths = std::vector<std::int64_t>;
    expect_zero(layer({.page_size = 16, .seqlens_q = Lengths(batch, 1), .seqlens_k = Lengths(batch, 0)}));
  }
}

/// Pitfalls 9 and 14: the first queries of such sequences stand at negative positions and see nothing.
TEST_P(MemoryPitfalls, MoreQueriesThanKeys) {
  const Layer odd = layer(
      {.num_heads_q = 8, .topk = 3, .page_size = 16, .seqlens_q = {5, 16, 1, 3, 16}, .seqlens_k = {3, 1, 0, 2, 15}});
  expect_layer(odd, quick_judge(odd));
  const TensorMap out = run(odd, OPENMSA_OP_MSA_ATTENTION);
  for (const std::int64_t row : {0, 1, 5, 19, 21, 22, 25}) {
    EXPECT_TRUE(is_zero(rows(out.at("o"), row, 1))) << "row " << row;
    EXPECT_EQ(out.at("lse").at({row, 7}), -kInf) << "row " << row;
    EXPECT_THAT(selection_row(out.at("topk_indices"), 1, row), Each(-1)) << "row " << row;
  }
}

/// Pitfall 10: NaN in the tail of the last page, in pages that nobody owns, in page 0.
TEST_P(MemoryPitfalls, GarbageInTailsOtherPagesAndPageZeroIsNotUsed) {
  // make_layer fills all of these with NaN; with Inf and with zeros the results must be the same.
  for (const Layer& paged : paged_layers()) {
    const TensorMap expected = run(paged, OPENMSA_OP_MSA_ATTENTION);
    const TensorMap dense = run(paged, OPENMSA_OP_DENSE_ATTENTION);
    EXPECT_TRUE(is_finite(expected.at("o")));
    EXPECT_TRUE(is_finite(dense.at("o")));
    for (const double garbage : {kInf, -kInf, 0.0}) {
      expect_same_bits(run(with_garbage(paged, garbage), OPENMSA_OP_MSA_ATTENTION), expected);
      expect_same_bits(run(with_garbage(paged, garbage), OPENMSA_OP_DENSE_ATTENTION), dense);
    }
  }
}

/// Pitfall 10: after the last page of a sequence the table may hold anything.
TEST_P(MemoryPitfalls, GarbageBehindTheTableIsNotUsed) {
  for (Layer& paged : paged_layers()) {
    const TensorMap expected = run(paged, OPENMSA_OP_MSA_ATTENTION);
    Buffer& table = paged.tensors.at("block_table");
    for (std::int64_t i = 0; i < table.size(); ++i) {
      if (table[i] < 0) table.set(i, 1 << 30);
    }
    expect_same_bits(run(paged, OPENMSA_OP_MSA_ATTENTION), expected);
  }
}

/// Pitfall 10: NaN in kv_blocks that nobody selected.
TEST_P(MemoryPitfalls, NanInBlocksThatNobodyChoseIsNotUsed) {
  const std::int64_t length = 6 * block() + 8;
  Layer sparse = layer({.topk = 2, .seqlens_q = {40}, .seqlens_k = {length}});
  std::vector<std::int64_t> indices;
  for (std::int64_t row = 0; row < 80; ++row) indices.insert(indices.end(), {1, 4});
  sparse.add({{"topk_indices", int_buffer(indices, {2, 40, 2})}});
  const TensorMap expected = run(sparse, OPENMSA_OP_SPARSE_ATTENTION);
  for (const char* name : {"k", "v"}) {
    fill_rows(sparse.tensors.at(name), 0, block(), kNan);
    fill_rows(sparse.tensors.at(name), 2 * block(), 4 * block(), kInf);
    fill_rows(sparse.tensors.at(name), 5 * block(), length, kNan);
  }
  expect_same_bits(run(sparse, OPENMSA_OP_SPARSE_ATTENTION), expected);
}

/// Pitfall 10: keys after the last query of a tile (32 queries or a divisor), in its own kv_block and in later ones
/// that it names.
TEST_P(MemoryPitfalls, NanInTheFutureIsNotUsed) {
  Layer future = layer({.topk = 4, .seqlens_q = {90}, .seqlens_k = {290}});
  future.add({{"topk_indices", random_selection(future, 8)}});
  const TensorMap before = run(future, OPENMSA_OP_SPARSE_ATTENTION);
  for (const char* name : {"k", "v"}) fill_rows(future.tensors.at(name), 264, 290, kNan);
  const TensorMap after = run(future, OPENMSA_OP_SPARSE_ATTENTION);
  for (const char* name : {"o", "lse"}) {
    EXPECT_TRUE(rows(before.at(name), 0, 64).same_bits(rows(after.at(name), 0, 64))) << name;
  }
}

/// Pitfall 12: rows of a fused projection, heads with gaps, token-major indices, transposed lse.
TEST_P(MemoryPitfalls, StridedInputsAndOutputs) {
  const std::int64_t gap = is_cuda() ? 8 : 7;  // the GPU's copy engine wants rows of 16 bytes
  const Layer packed = layer({.seqlens_q = {140, 9}, .seqlens_k = {140, 420}});
  Layer strided = packed;
  TensorMap& in = strided.tensors;
  in["q"] = restrided(in["q"], {4 * (64 + gap) + 89 * gap, 64 + gap, 1});
  in["k"] = restrided(in["k"], {64, 560 * 64, 1});  // head-major
  in["v"] = restrided(in["v"], {504, 128 + gap, 1});
  in["index_q"] = restrided(in["index_q"], {200, 64 + 5 * gap, 1});
  in["index_k"] = restrided(in["index_k"], {64 + 2 * gap, 1});
  in["cu_seqlens_q"] = restrided(in["cu_seqlens_q"], {3});
  in["cu_seqlens_k"] = restrided(in["cu_seqlens_k"], {2});
  expect_same_with_gaps(strided, packed);
}

/// Pitfall 12, decode: head-major pages, and pages, tokens and heads with gaps between them.
TEST_P(MemoryPitfalls, StridedPages) {
  for (const std::int32_t page : {16, block()}) {
    const Layer packed = decode(page);
    Layer strided = packed;
    TensorMap& in = strided.tensors;
    in["q"] = restrided(in["q"], {2600, 136, 1});
    in["index_q"] = restrided(in["index_q"], {400, 168, 1});
    in["k_cache"] = restrided(in["k_cache"], {3 * page * 128, 128, page * 128, 1});
    in["v_cache"] = restrided(in["v_cache"], {page * 312, 312, 144, 1});
    in["index_k_cache"] = restrided(in["index_k_cache"], {page * 200, 200, 1});
    in["block_table"] = restrided(in["block_table"], {1000, 3});
    in["seqlens_k"] = restrided(in["seqlens_k"], {5});
    in["cu_seqlens_q"] = restrided(in["cu_seqlens_q"], {2});
    expect_same_with_gaps(strided, packed);
  }
}

/// Pitfall 12: scores, written and read.
TEST_P(MemoryPitfalls, StridedScoresAndTables) {
  Layer packed = prompts(block() / 2);
  const TensorMap expected = run(packed, OPENMSA_OP_BLOCK_SCORES);
  const Buffer& scores = expected.at("block_scores");
  Layer strided = packed;
  TensorMap& in = strided.tensors;
  in["block_table"] = restrided(in["block_table"], {150, 3});
  in["seqlens_k"] = restrided(in["seqlens_k"], {5});
  const std::int64_t blocks = scores.shape()[2];
  TensorMap got = {{"block_scores", Buffer::strided(scores.dtype(), scores.shape(), {3, 2 * 3 * blocks, 6})}};
  run_into(strided, OPENMSA_OP_BLOCK_SCORES, got);
  EXPECT_EQ(got.at("block_scores").values(), scores.values());
  packed.add(expected);
  strided.add(got);
  expect_same_bits(run(strided, OPENMSA_OP_TOPK), run(packed, OPENMSA_OP_TOPK));
}

/// Pitfall 12: K and V as halves of one row, tokens or heads first.
TEST_P(MemoryPitfalls, KeysAndValuesAsHalvesOfOneBuffer) {
  for (const Layer& separate : paged_layers()) {
    const TensorMap expected = run(separate, OPENMSA_OP_MSA_ATTENTION);
    for (const bool head_major : {false, true}) {
      const Buffer rows = fused_rows(separate.tensors.at("k_cache"), separate.tensors.at("v_cache"), head_major);
      TensorMap got = poisoned_outputs(separate, OPENMSA_OP_MSA_ATTENTION);
      run_into(separate, OPENMSA_OP_MSA_ATTENTION, got,
               [&](Tensors& tensors, const Place& place) { bind_halves(tensors, rows, place(rows)); });
      expect_same_bits(got, expected);
    }
  }
}

/// Pitfall 12: pages of several requests.
TEST_P(MemoryPitfalls, RequestsMayShareTheirPrefixPages) {
  // All requests hold the same tokens in the same pages, then go separate ways: two of them, and forty.
  LayerShape two{.page_size = block() / 2, .seqlens_q = {1, 1}, .seqlens_k = {3 * block() - 2, 3 * block() - 12}};
  LayerShape forty{.num_heads_q = 1, .num_heads_kv = 1, .head_dim = 128, .topk = 3, .page_size = 16};
  forty.seqlens_q.clear();
  forty.seqlens_k.clear();
  for (std::int64_t b = 0; b < 40; ++b) {
    forty.seqlens_q.push_back(1 + b % 4);
    forty.seqlens_k.push_back(516 + b * 7);
  }
  for (const CommonPrefix& prefix : {CommonPrefix(layer(two), 2), CommonPrefix(layer(forty), 512 / 16)}) {
    expect_same_bits(run(prefix.shared, OPENMSA_OP_MSA_ATTENTION), run(prefix.copied, OPENMSA_OP_MSA_ATTENTION));
  }
}

/// Pitfall 13: page sizes that are misread instead of refused.
TEST_P(MemoryPitfalls, PageSizesThatDoNotDivideTheBlockAreRefused) {
  Layer pages = layer({.seqlens_q = {1}, .seqlens_k = {64}});
  for (const std::int32_t page_size : {3, 24, 48, 2 * block(), -16}) {
    pages.config.page_size = page_size;
    EXPECT_THROW(Plan{pages.config}, Error) << page_size;
  }
}

/// Pitfall 13: pages of one token, once taken for pages of one kv_block.
TEST_P(MemoryPitfalls, PagesOfOneTokenAreReadAsTokens) {
  LayerShape shape{.seqlens_q = {3}, .seqlens_k = {150}};
  const TensorMap contiguous = run(layer(shape), OPENMSA_OP_MSA_ATTENTION);
  shape.page_size = 1;
  if (is_cuda()) {
    EXPECT_THROW(run(layer(shape), OPENMSA_OP_MSA_ATTENTION), Error) << "not served: to be refused";
  } else {
    expect_same_bits(run(layer(shape), OPENMSA_OP_MSA_ATTENTION), contiguous);
  }
}

/// Pitfall 14: a tile whose first kv_blocks belong to other queries: exp(-inf - -inf).
TEST_P(MemoryPitfalls, NeighbouringQueriesMayShareNoBlock) {
  // Whatever the size of a query tile: each row has its own two blocks, some none, and no row has the first blocks that
  // another one has. The tile's own blocks are named in one, past ones only in the other.
  for (const std::int64_t blocks : {6, 12}) {
    Layer tile = layer({.topk = 2, .seqlens_q = {16, 16}, .seqlens_k = {blocks * block() + block() / 2, 32}});
    Buffer indices(OPENMSA_INT32, {2, 32, 2});
    indices.fill(-1);
    for (std::int64_t r = 0; r < 2; ++r) {
      for (std::int64_t t = 0; t < 16; ++t) {
        if (t % 5 == 4) continue;
        indices.set({r, t, 0}, static_cast<double>((t * 3 + r) % 6));
        indices.set({r, t, 1}, static_cast<double>((t * 3 + r + 2) % 6));
      }
    }
    tile.add({{"topk_indices", indices}});
    expect_attention(tile, quick_judge(tile));
  }
}

/// Pitfall 14: requests without queries, shorter than a block, with fewer blocks than topk, with more queries than
/// keys, straddling any tile.
TEST_P(MemoryPitfalls, OddBatches) {
  const Layer odd = layer({.num_heads_q = 8,
                           .topk = 16,
                           .seqlens_q = {0, 1, 2, 0, 30, 63, 10, 0},
                           .seqlens_k = {9, 1, 2, 0, 31, 64, 4, 5}});
  expect_layer(odd, quick_judge(odd));
}

/// Pitfall 14: far more requests than there are threads or CTAs.
TEST_P(MemoryPitfalls, ManySequences) {
  LayerShape shape{.seqlens_q = {}, .seqlens_k = {}};
  for (std::int64_t b = 0; b < 600; ++b) {
    shape.seqlens_q.push_back(b % 4);
    shape.seqlens_k.push_back(b % 4 + b % 7 * 30);
  }
  const Layer many = layer(shape);
  expect_layer(many, quick_judge(many));
}

}  // namespace
}  // namespace openmsa::test
