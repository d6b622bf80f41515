// What the CUDA backend does not serve is refused before anything is launched, naming the feature.
#include <gmock/gmock.h>

#include <functional>
#include <span>
#include <string>
#include <utility>

#include "cuda/support/device_call.h"
#include "cuda/support/hopper.h"
#include "judge/shards.h"
#include "support/compare.h"

namespace openmsa::test {
namespace {

using testing::HasSubstr;

LayerShape served_shape() { return {.dtype = OPENMSA_BFLOAT16, .block_size = 64, .seqlens_q = {9}, .seqlens_k = {90}}; }

/// The status and message with which `body` is refused.
void expect_refusal(openmsa_status status, const std::string& message, const std::function<void()>& body) {
  try {
    body();
    ADD_FAILURE() << "expected a refusal naming " << message;
  } catch (const Error& error) {
    EXPECT_EQ(error.status(), status) << error.what();
    EXPECT_THAT(error.what(), HasSubstr(message));
  }
}

struct Feature {
  std::string name;
  std::function<void(Config&)> ask;
};

class RefusedPlan : public OnHopperWith<Feature> {};
INSTANTIATE_TEST_SUITE_P(Features, RefusedPlan,
                         testing::Values(Feature{"dtype", [](Config& c) { c.dtype = OPENMSA_FLOAT32; }},
                                         Feature{"head_dim", [](Config& c) { c.head_dim = 40; }},
                                         Feature{"index_dim", [](Config& c) { c.index_dim = 32; }},
                                         Feature{"block_size", [](Config& c) { c.block_size = 32; }},
                                         Feature{"num_heads_q", [](Config& c) { c.num_heads_q = 6; }},
                                         Feature{"page_size", [](Config& c) { c.page_size = 8; }},
                                         Feature{"softmax_scale", [](Config& c) { c.softmax_scale = -1; }}),
                         [](const testing::TestParamInfo<Feature>& info) { return info.param.name; });

TEST_P(RefusedPlan, NamesTheFeature) {
  Config config = device_layer(served_shape()).config;
  Plan{config};
  GetParam().ask(config);
  expect_refusal(OPENMSA_UNSUPPORTED, GetParam().name, [&] { Plan{config}; });
}

constexpr openmsa_op kTrainingOps[] = {OPENMSA_OP_SPARSE_ATTENTION_BACKWARD, OPENMSA_OP_DENSE_ATTENTION_BACKWARD,
                                       OPENMSA_OP_MSA_ATTENTION_BACKWARD, OPENMSA_OP_KL_LOSS, OPENMSA_OP_BLOCK_RECALL};

class RefusedCall : public OnHopper {
 protected:
  void expect_call_refused(openmsa_status status, const std::string& message,
                           const std::function<void(Tensors&)>& spoil, openmsa_op op = OPENMSA_OP_MSA_ATTENTION) {
    DeviceCall call(layer_, op);
    const TensorMap before = call.results();
    spoil(call.tensors());
    expect_refusal(status, message, [&] { call.enqueue(); });
    for (const auto& [name, buffer] : call.results()) EXPECT_TRUE(buffer.same_bits(before.at(name))) << name;
  }

  const Layer layer_ = device_layer(served_shape());
};

TEST_F(RefusedCall, RowsThatTheCopyEngineCannotRead) {
  expect_call_refused(OPENMSA_UNSUPPORTED, "q: expected 16-byte aligned rows", [](Tensors& tensors) {
    tensors.q.data = static_cast<std::byte*>(tensors.q.data) + sizeof(std::uint16_t);
  });
  expect_call_refused(OPENMSA_UNSUPPORTED, "v: expected 16-byte aligned rows",
                      [](Tensors& tensors) { tensors.v.strides[0] += 1; });
}

TEST_F(RefusedCall, ResultsInAnotherDtype) {
  expect_call_refused(
      OPENMSA_UNSUPPORTED, "o: expected the plan's dtype", [](Tensors& tensors) { tensors.o.dtype = OPENMSA_FLOAT32; },
      OPENMSA_OP_DENSE_ATTENTION);
}

/// The copy engine reads d_o beside q.
TEST_F(RefusedCall, GradientsInAnotherDtype) {
  Layer layer = layer_;
  layer.add(run(layer, OPENMSA_OP_MSA_ATTENTION));
  layer.tensors["d_o"] = layer.tensors.at("d_o").as(OPENMSA_FLOAT32);
  DeviceCall call(layer, OPENMSA_OP_SPARSE_ATTENTION_BACKWARD);
  expect_refusal(OPENMSA_UNSUPPORTED, "d_o: expected the plan's dtype", [&] { call.enqueue(); });
}

TEST_F(RefusedCall, ShapesThatContradictThePlan) {
  expect_call_refused(OPENMSA_INVALID_ARGUMENT, "k: expected", [](Tensors& tensors) { tensors.k.shape[1] = 1; });
  expect_call_refused(OPENMSA_INVALID_ARGUMENT, "index_k", [](Tensors& tensors) { tensors.index_k = {}; });
}

TEST_F(RefusedCall, WorkspaceThatIsTooSmallOrMisaligned) {
  const Plan plan(layer_.config);
  DeviceCall call(layer_, OPENMSA_OP_MSA_ATTENTION);
  const std::size_t bytes = plan.workspace_bytes(OPENMSA_OP_MSA_ATTENTION);
  const DeviceMemory memory(bytes + 64);
  const auto run_in = [&](std::byte* data, std::size_t size) {
    plan.run(OPENMSA_OP_MSA_ATTENTION, call.tensors(), {data, size, nullptr});
  };
  expect_refusal(OPENMSA_INVALID_ARGUMENT, "workspace", [&] { run_in(memory.data(), bytes - 1); });
  expect_refusal(OPENMSA_INVALID_ARGUMENT, "workspace", [&] { run_in(memory.data() + 64, bytes); });
  expect_refusal(OPENMSA_INVALID_ARGUMENT, "workspace", [&] { run_in(nullptr, bytes); });
}

class RefusedShardCall : public RefusedCall {};

TEST_F(RefusedShardCall, WhatWorksOnWholeSequences) {
  const Layer layer =
      device_layer({.dtype = OPENMSA_BFLOAT16, .block_size = 64, .page_size = 16, .seqlens_q = {9}, .seqlens_k = {90}});
  for (const openmsa_op op : {OPENMSA_OP_SELECT_BLOCKS, OPENMSA_OP_MSA_ATTENTION, OPENMSA_OP_DENSE_ATTENTION}) {
    Layer shard = judge::shard_of(layer, 2, 1);
    DeviceCall call(shard, op);
    expect_refusal(OPENMSA_UNSUPPORTED, "works on whole sequences", [&] { call.enqueue(); });
  }
}

TEST_F(RefusedShardCall, PartsWhoseRowsAreNotAligned) {
  Layer merge = layer_;
  merge.config.shard_count = 2;
  const std::int64_t rows = 9, heads = merge.config.num_heads_q, dim = merge.config.head_dim;
  merge.tensors["partial_o"] = Buffer::strided(OPENMSA_FLOAT32, {2, rows, heads, dim},
                                               {rows * heads * (dim + 1), heads * (dim + 1), dim + 1, 1});
  merge.tensors["partial_lse"] = Buffer(OPENMSA_FLOAT32, {2, rows, heads});
  DeviceCall call(merge, OPENMSA_OP_MERGE_PARTIALS);
  expect_refusal(OPENMSA_UNSUPPORTED, "partial_o: expected 16-byte aligned rows", [&] { call.enqueue(); });
}

/// The portable kernels have none for shards.
TEST_F(RefusedCall, ShardsWithoutKernelsForThem) {
  const char* const family = std::getenv("OPENMSA_CUDA_FAMILY");
  if (family == nullptr || family != std::string("sm80")) GTEST_SKIP() << "the kernels for Hopper serve them";
  const Plan plan(layer_.config);
  for (const openmsa_op op : {OPENMSA_OP_SELECT_CANDIDATES, OPENMSA_OP_MERGE_CANDIDATES, OPENMSA_OP_MERGE_PARTIALS}) {
    expect_refusal(OPENMSA_UNSUPPORTED, std::string("got openmsa_") + name_of(op), [&] { plan.workspace_bytes(op); });
  }
}

class DeviceWorkspace : public OnHopper {};

Config one_million_tokens(std::int32_t topk) {
  Config config = openmsa::config();
  config.backend = OPENMSA_BACKEND_CUDA;
  config.dtype = OPENMSA_BFLOAT16;
  config.num_heads_q = 64;
  config.num_heads_kv = 4;
  config.head_dim = config.index_dim = 128;
  config.max_total_q = config.max_seqlen_k = 1 << 20;
  config.topk = topk;
  return config;
}

void expect_below_two_gib(const Config& config, std::span<const openmsa_op> ops) {
  for (const openmsa_op op : ops) {
    EXPECT_LE(Plan(config).workspace_bytes(op), std::size_t{2} << 30) << "topk " << config.topk << ", op " << op;
  }
}

TEST_F(DeviceWorkspace, StaysBelowTwoGiBAtOneMillionTokens) {
  constexpr openmsa_op kForwardOps[] = {OPENMSA_OP_BLOCK_SCORES,  OPENMSA_OP_TOPK,
                                        OPENMSA_OP_SELECT_BLOCKS, OPENMSA_OP_SPARSE_ATTENTION,
                                        OPENMSA_OP_MSA_ATTENTION, OPENMSA_OP_DENSE_ATTENTION};
  for (const std::int32_t topk : {16, 64}) expect_below_two_gib(one_million_tokens(topk), kForwardOps);
}

TEST_F(DeviceWorkspace, StaysBelowTwoGiBInTheBackwardPassOfOneMillionTokens) {
  for (const std::int32_t topk : {16, 64}) expect_below_two_gib(one_million_tokens(topk), kTrainingOps);
}

}  // namespace
}  // namespace openmsa::test
