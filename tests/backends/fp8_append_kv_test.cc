// New tokens into fp8 caches on every backend: bit by bit what its judge stores, scales included, and nothing else.
#include <gtest/gtest.h>

#include <tuple>

#include "pitfalls/fixture.h"
#include "support/append_kv.h"

namespace openmsa::test {
namespace {

constexpr openmsa_dtype kFp8 = OPENMSA_FLOAT8_E4M3;

/// The backend, and the kind of all scales.
class Fp8AppendKv : public OnAnyBackend, public testing::WithParamInterface<std::tuple<Backend, Scales>> {
 protected:
  static Scales scales() { return std::get<Scales>(GetParam()); }
  static Layer on_backend(const Layer& layer) { return layer.on(std::get<Backend>(GetParam()).id); }
  static Layer new_tokens(const LayerShape& wanted) { return on_backend(with_new_keys(make_layer(wanted), 3)); }

  /// One token, drafts, none, a prompt, padding with and without rows, a chunk behind a prefix.
  static LayerShape shape() {
    return {.dtype = OPENMSA_BFLOAT16,
            .num_heads_q = 6,
            .num_heads_kv = 3,
            .block_size = 128,
            .page_size = 32,
            .seqlens_q = {1, 16, 0, 130, 2, 0, 70},
            .seqlens_k = {1, 129, 40, 130, 0, 0, 333},
            .padding_q = 3,
            .kv_dtype = kFp8,
            .index_dtype = kFp8,
            .scales = scales()};
  }
};
std::string kind_name(const testing::TestParamInfo<std::tuple<Backend, Scales>>& info) {
  constexpr const char* kNames[] = {"_no_scale", "_one_scale", "_scale_per_token", "_scale_per_block"};
  return backend_name(std::get<Backend>(info.param)) + kNames[static_cast<int>(std::get<Scales>(info.param))];
}
INSTANTIATE_TEST_SUITE_P(Kinds, Fp8AppendKv,
                         testing::Combine(testing::ValuesIn(judged_backends()),
                                          testing::Values(Scales::kNone, Scales::kOne, Scales::kPerToken,
                                                          Scales::kPerBlock)),
                         kind_name);

TEST_P(Fp8AppendKv, EveryShapeMatchesTheJudge) {
  for (const std::int32_t page_size : {16, 128}) {
    for (const openmsa_dtype dtype : {OPENMSA_BFLOAT16, OPENMSA_FLOAT16}) {
      for (const std::int32_t head_dim : {64, 128}) {
        SCOPED_TRACE(testing::Message() << "page_size " << page_size << ", head_dim " << head_dim << ", dtype "
                                        << dtype);
        LayerShape wanted = shape();
        wanted.page_size = page_size;
        wanted.dtype = dtype;
        wanted.head_dim = head_dim;
        wanted.index_dim = 192 - head_dim;
        const Layer layer = new_tokens(wanted);
        expect_appended(layer, stored(layer));
      }
    }
  }
}

TEST_P(Fp8AppendKv, KeysOfOneBranchAlone) {
  for (const bool is_index : {false, true}) {
    LayerShape wanted = shape();
    (is_index ? wanted.kv_dtype : wanted.index_dtype) = {};
    const Layer layer = new_tokens(wanted);
    expect_appended(layer, stored(layer));
  }
}

/// k keeps its kind; v has no scale, and index keys have one for all.
TEST_P(Fp8AppendKv, KindsMayDiffer) {
  Layer layer = new_tokens(shape());
  TensorMap before = stored(layer);
  for (TensorMap* tensors : {&layer.tensors, &before}) {
    for (const char* name : {"v_scale", "index_k_scale"}) tensors->erase(name);
  }
  layer.tensors["index_k_scale"] = Buffer(OPENMSA_FLOAT32, {1}, {0.3});
  expect_appended(layer, before);
}

/// Gaps stay as they were, also those between scales.
TEST_P(Fp8AppendKv, CachesAndScalesOfAnyStrides) {
  const Layer layer = new_tokens(shape());
  TensorMap before = stored(layer);
  before["k_cache"] = restrided(before["k_cache"], {3 * 32 * 64, 64, 32 * 64, 1});  // head-major
  before["v_cache"] = restrided(before["v_cache"], {8000, 240, 80, 1});
  before["index_k_cache"] = restrided(before["index_k_cache"], {3200, 96, 1});
  if (scales() >= Scales::kPerToken) {
    before["k_scale"] = restrided(before["k_scale"], {1, 5});  // tokens before heads
    before["v_scale"] = restrided(before["v_scale"], {3 * before["v_scale"].shape()[1], 2});
    before["index_k_scale"] = restrided(before["index_k_scale"], {7});
  }
  expect_appended(layer, before);
}

/// Zeros, rows too small for a scale, the least that is not, and numbers that are none.
TEST_P(Fp8AppendKv, OddValues) {
  Layer layer = new_tokens(shape());
  for (const char* name : {"k", "v", "index_k"}) {
    Buffer& keys = layer.tensors.at(name);
    std::int64_t row = 20;  // of the prompt
    for (const double value : {0.0, -0.0, 0x1p-133, 0x1p-118, 0x1p-117, 1e-20, 460.0, 1e38}) {
      fill_rows(keys, row, row + 1, value);
      ++row;
    }
    for (const double value : {kNan, -kNan, kInf, -kInf, -1e30}) {
      keys.set(keys.size() / keys.shape()[0] * row + 7, value);
      ++row;
    }
    fill_rows(keys, row, row + 1, kNan);
  }
  expect_appended(layer, stored(layer));
}

/// Values of most unequal size, so that their scales are, and some tokens of nothing but zeros.
TEST_P(Fp8AppendKv, AttentionReadsWhatWasStored) {
  for (const openmsa_dtype dtype : {OPENMSA_BFLOAT16, OPENMSA_FLOAT16}) {
    LayerShape prompt = shape();
    prompt.dtype = dtype;
    prompt.block_size = 64;
    prompt.topk = 3;
    prompt.seqlens_q = prompt.seqlens_k = {330, 97};
    Layer whole = on_backend(make_layer(prompt));
    if (scales() == Scales::kPerToken) {
      Buffer& v = whole.tensors.at("v");
      const std::int64_t row = v.size() / v.shape()[0];
      for (std::int64_t i = 0; i < v.size(); ++i) v.set(i, v[i] * std::exp2(-5 - i / row % 7));
      for (const char* name : {"k", "v", "index_k"}) fill_rows(whole.tensors.at(name), 200, 203, 0);
    }
    for (const std::int64_t queries : {1, 8}) {
      SCOPED_TRACE(testing::Message() << "dtype " << dtype << ", " << queries << " queries");
      prompt.seqlens_q = {queries, queries};
      prompt.padding_q = 0;
      Layer step = on_backend(make_layer(prompt));  // with the pages of the whole
      for (const char* name : {"k_scale", "v_scale", "index_k_scale"}) {
        if (scales() == Scales::kOne) step.tensors[name] = whole.tensors.at(name);
      }
      step.add(run(whole, OPENMSA_OP_APPEND_KV));
      expect_layer(step);
    }
  }
}

}  // namespace
}  // namespace openmsa::test
