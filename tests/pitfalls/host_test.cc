// Pitfalls of the backends in this process: memory that is mapped where it is touched, a workspace that is used again,
// and what only they promise to the last bit.
#include <gtest/gtest.h>

#include "core/dtype.h"
#include "pitfalls/fixture.h"
#include "pitfalls/fp8_layer.h"
#include "support/compare.h"
#include "support/huge_memory.h"

namespace openmsa::test {
namespace {

using HostPitfalls = OnBackend;
INSTANTIATE_TEST_SUITE_P(Backends, HostPitfalls, testing::ValuesIn(backends()), backend_test_name);

/// Pitfall 8: page number times stride in 32 bits.
TEST_P(HostPitfalls, OffsetsPast32BitsReachTheRightElements) {
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
TEST_P(HostPitfalls, ScoresPast32BitsReachTheRightElements) {
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

/// Pitfall 11: what a graph that is replayed, or a plan and a workspace that are used again, keeps of earlier lengths.
TEST_P(HostPitfalls, NothingIsLeftOfEarlierCalls) {
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
TEST_P(HostPitfalls, HeadsMayBeSplitBetweenRanks) {
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

/// The layer's own numbers in fp32, as they stand in the outputs of append_kv.
Buffer dequantised(const Buffer& cache, const Buffer& scale, const Layer& layer) {
  const std::int64_t heads = cache.shape().size() == 4 ? cache.shape()[2] : 1, channels = cache.shape().back();
  const std::int64_t tokens = cache.shape()[0] * cache.shape()[1];
  Buffer result(OPENMSA_FLOAT32, cache.shape());
  for (std::int64_t i = 0; i < cache.size(); ++i) {
    const std::int64_t token = i / (heads * channels), head = i / channels % heads;
    const bool per_token = layer.shape.scales == Scales::kPerToken;
    const double factor = layer.shape.scales == Scales::kNone ? 1 : scale[per_token ? head * tokens + token : 0];
    result.set(i, cache[i] * factor);
  }
  return result;
}

/// e4m3(x * (448 / amax)) * (amax / 448) of every row.
Buffer rounded_rows(Buffer rows) {
  const std::int64_t channels = rows.shape().back();
  for (std::int64_t row = 0; row < rows.size() / channels; ++row) {
    float amax = 0;
    for (std::int64_t c = 0; c < channels; ++c) amax = std::max(amax, std::abs(float(rows[row * channels + c])));
    for (std::int64_t c = 0; c < channels; ++c) {
      const float scaled = static_cast<float>(rows[row * channels + c]) * (448 / amax);
      rows.set(row * channels + c, core::to_float(core::to_float8_e4m3(scaled)) * (amax / 448));
    }
  }
  return rows;
}

using Fp8HostPitfalls = OnBackend;
INSTANTIATE_TEST_SUITE_P(Backends, Fp8HostPitfalls, testing::ValuesIn(backends()), backend_test_name);

/// Pitfall 15: scales of one head or token used for another.
TEST_P(Fp8HostPitfalls, AttentionOverAppendedTokensIsThatOverTheirNumbers) {
  for (const Scales scales : {Scales::kNone, Scales::kOne, Scales::kPerToken}) {
    LayerShape shape = fp8_shape(scales);
    shape.seqlens_q = shape.seqlens_k = {70, 33};
    Layer fp8 = layer(shape);
    TensorMap caches = poisoned_outputs(fp8, OPENMSA_OP_APPEND_KV);
    run_into(fp8, OPENMSA_OP_APPEND_KV, caches);
    fp8.add(caches);

    shape.kv_dtype = shape.index_dtype = OPENMSA_FLOAT32;
    shape.scales = Scales::kNone;
    Layer plain = layer(shape);
    plain.tensors["block_table"] = fp8.tensors.at("block_table");
    for (const std::string name : {"k", "v", "index_k"}) {
      const Buffer scale = scales == Scales::kNone ? Buffer() : fp8.tensors.at(name + "_scale");
      plain.tensors[name + "_cache"] = dequantised(caches.at(name + "_cache"), scale, fp8);
    }
    plain.tensors["index_q"] = rounded_rows(plain.tensors.at("index_q"));

    const TensorMap got = run(fp8, OPENMSA_OP_MSA_ATTENTION), expected = run(plain, OPENMSA_OP_MSA_ATTENTION);
    EXPECT_TRUE(is_finite(got.at("o")));
    EXPECT_TRUE(got.at("topk_indices").same_bits(expected.at("topk_indices")));
    EXPECT_LT(relative_error(got.at("o"), expected.at("o")), 1e-6);
    EXPECT_LT(absolute_error(got.at("lse"), expected.at("lse")), 1e-5);
    EXPECT_LT(absolute_error(run(fp8, OPENMSA_OP_BLOCK_SCORES).at("block_scores"),
                             run(plain, OPENMSA_OP_BLOCK_SCORES).at("block_scores")),
              1e-5);
    // What has been rounded is near what went in: 3 bits of mantissa.
    const Layer exact = layer({.page_size = 16, .seqlens_q = {70, 33}, .seqlens_k = {70, 33}});
    EXPECT_LT(
        relative_error(run(fp8, OPENMSA_OP_DENSE_ATTENTION).at("o"), run(exact, OPENMSA_OP_DENSE_ATTENTION).at("o")),
        0.1);
  }
}

/// Pitfall 8, fp8.
TEST_P(Fp8HostPitfalls, OffsetsPast32BitsReachTheRightElements) {
  const Layer small = layer(fp8_shape(Scales::kPerToken));
  TensorMap outputs = poisoned_outputs(small, OPENMSA_OP_MSA_ATTENTION);
  Tensors tensors = gather(small, OPENMSA_OP_MSA_ATTENTION, outputs);
  for (const auto member : {&Tensors::k_cache, &Tensors::v_cache, &Tensors::index_k_cache, &Tensors::k_scale,
                            &Tensors::v_scale, &Tensors::index_k_scale}) {
    const HugeTensor huge(tensors.*member);
    if (!huge.is_mapped()) GTEST_SKIP() << "the system does not lend enough address space";
    Tensors spread = tensors;
    spread.*member = huge.view();
    Workspace workspace;
    Plan(small.config).run(OPENMSA_OP_MSA_ATTENTION, spread, workspace);
    expect_same_bits(outputs, run(small, OPENMSA_OP_MSA_ATTENTION));
  }
}

}  // namespace
}  // namespace openmsa::test
