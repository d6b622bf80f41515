// Where the tensors of decode lie: the views that serving systems pass, and pages that requests share.
#include "cuda/decode/cases.h"
#include "cuda/support/fused_cache.h"
#include "cuda/support/judge.h"
#include "pitfalls/fixture.h"

namespace openmsa::test {
namespace {

class DecodeMemory : public OnHopperWith<std::int32_t> {
 protected:
  static LayerShape shape(std::int32_t page_size) {
    return {.dtype = OPENMSA_BFLOAT16,
            .num_heads_q = 16,
            .head_dim = 128,
            .index_dim = 128,
            .block_size = 128,
            .topk = 3,
            .page_size = page_size,
            .seqlens_q = {4, 1, 16, 1},
            .seqlens_k = {700, 1610, 529, 0},
            .padding_q = 2};
  }
};
INSTANTIATE_TEST_SUITE_P(PageSizes, DecodeMemory, testing::Values(16, 128), testing::PrintToStringParamName());

/// q as a slice of a fused projection, heads with gaps, token-major indices, transposed lse, head-major pages.
TEST_P(DecodeMemory, StridedInputsAndOutputs) {
  const Layer packed = make_layer(shape(GetParam()));
  const TensorMap expected = run_on_device(packed, OPENMSA_OP_MSA_ATTENTION);
  const std::int64_t page = GetParam(), total_q = packed.total_q();
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
  const TensorMap poisoned = {{"o", Buffer::strided(OPENMSA_BFLOAT16, {total_q, 16, 128}, {2400, 144, 1})},
                              {"lse", Buffer::strided(OPENMSA_FLOAT32, {total_q, 16}, {1, total_q + 5})},
                              {"topk_indices", Buffer::strided(OPENMSA_INT32, {2, total_q, 3}, {3, 11, 1})}};
  const DeviceCall call(strided, OPENMSA_OP_MSA_ATTENTION, poisoned);
  call.enqueue();
  const TensorMap got = call.results();
  TensorMap untouched = poisoned;
  for (const auto& [name, result] : got) {
    EXPECT_EQ(result.values(), expected.at(name).values()) << name;
    untouched.at(name).assign(result.values());  // gaps as they were before
    EXPECT_TRUE(result.same_bits(untouched.at(name))) << name << " was written between its elements";
  }

  strided.add({{"topk_indices", got.at("topk_indices")}});
  expect_same_bits(run_on_device(strided, OPENMSA_OP_SPARSE_ATTENTION),
                   {{"o", expected.at("o")}, {"lse", expected.at("lse")}});
}

TEST_P(DecodeMemory, KeysAndValuesAsHalvesOfWideRows) {
  const Layer separate = make_layer(shape(GetParam()));
  const TensorMap expected = run_on_device(separate, OPENMSA_OP_MSA_ATTENTION);
  expect_same_from_fused_caches(separate, expected);
}

/// Behind a sequence's end, in pages that nobody has or chose, in page 0, and behind the end of a row of the table.
TEST_P(DecodeMemory, GarbageIsNotUsed) {
  const Layer layer = make_layer(shape(GetParam()));  // with NaN in all of these
  const TensorMap expected = run_on_device(layer, OPENMSA_OP_MSA_ATTENTION);
  EXPECT_TRUE(is_finite(expected.at("o")));
  for (const double garbage : {kInf, -kInf, 0.0}) {
    Layer other = with_garbage(layer, garbage);
    Buffer& table = other.tensors.at("block_table");
    for (std::int64_t i = 0; i < table.size(); ++i) {
      if (table[i] < 0) table.set(i, 1 << 30);
    }
    expect_same_bits(run_on_device(other, OPENMSA_OP_MSA_ATTENTION), expected);
  }
}

/// Forty requests behind the same 512 tokens, in pages that all of them share or in copies of their own.
TEST_P(DecodeMemory, RequestsMayShareTheirPrefixPages) {
  LayerShape wanted = shape(GetParam());
  wanted.seqlens_q.clear();
  wanted.seqlens_k.clear();
  for (std::int64_t b = 0; b < 40; ++b) {
    wanted.seqlens_q.push_back(1 + b % 4);
    wanted.seqlens_k.push_back(516 + b * 7);
  }
  wanted.num_heads_q = wanted.num_heads_kv = 1;
  const CommonPrefix prefix(make_layer(wanted), 512 / GetParam());
  expect_same_bits(run_on_device(prefix.shared, OPENMSA_OP_MSA_ATTENTION),
                   run_on_device(prefix.copied, OPENMSA_OP_MSA_ATTENTION));
}

}  // namespace
}  // namespace openmsa::test
