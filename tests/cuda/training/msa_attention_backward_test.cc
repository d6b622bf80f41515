// The gradient of the sparse layer in one call on the GPU, at the size of several items and tiles: on streams, in graphs,
// and beside the two calls that it stands for.
#include "cuda/support/device_call.h"
#include "cuda/support/hopper.h"
#include "support/compare.h"
#include "support/gradients.h"
#include "support/selections.h"

namespace openmsa::test {
namespace {

constexpr openmsa_op kBackward = OPENMSA_OP_MSA_ATTENTION_BACKWARD;

class DeviceStep : public OnHopper {
 protected:
  static LayerShape busy(std::int32_t group_size = 16) {
    return {.dtype = OPENMSA_BFLOAT16,
            .num_heads_q = 2 * group_size,
            .num_heads_kv = 2,
            .head_dim = 128,
            .index_dim = 128,
            .block_size = 128,
            .topk = 8,
            .seqlens_q = {1800, 1, 5, 300},
            .seqlens_k = {2600, 900, 1300, 300},
            .padding_q = 7};
  }

  /// With a kv_block that every second query wants.
  static Layer hot(const LayerShape& shape, std::uint64_t seed = 1) {
    Layer layer = device_layer(shape, seed);
    Buffer indices = random_selection(layer, seed);
    for (std::int64_t row = 0; row < layer.total_q(); row += 2) {
      for (std::int64_t slot = 0; slot < 8; ++slot) indices.set({1, row, slot}, slot == 0 ? 0 : -1);
    }
    layer.add({{"topk_indices", indices}});
    return with_forward(layer, OPENMSA_OP_SPARSE_ATTENTION, OPENMSA_BACKEND_CPU);
  }
};

TEST_F(DeviceStep, LargeCallsMatchTheCpu) {
  for (const std::int32_t group_size : {1, 2, 4, 8, 16}) {
    SCOPED_TRACE(testing::Message() << "group_size " << group_size);
    const Layer layer = hot(busy(group_size));
    const TensorMap got = run(layer, kBackward), expected = judged(layer, kBackward, OPENMSA_BACKEND_CPU);
    for (const auto& [name, result] : got) {
      const double allowed = name == "kl_loss" ? 2e-3 : tolerance(layer.config).gradient;
      EXPECT_LT(relative_error(result, expected.at(name)), allowed) << name;
    }
  }
}

/// Groups of 8 and 16 heads: the teacher is a mean of probabilities rounded to bf16.
TEST_F(DeviceStep, LossAndItsGradientsAreThoseOfAKlLossAlone) {
  for (const std::int32_t group_size : {8, 16}) {
    const Layer layer = hot(busy(group_size));
    const TensorMap all = run(layer, kBackward), alone = run(layer, OPENMSA_OP_KL_LOSS);
    for (const char* name : {"kl_loss", "d_index_q", "d_index_k"}) {
      EXPECT_LT(relative_error(all.at(name), alone.at(name)), 4e-3) << name << ", group_size " << group_size;
    }
  }
}

TEST_F(DeviceStep, TwentyRunsAreEqual) {
  DeviceCall call(hot(busy()), kBackward);
  call.enqueue();
  const TensorMap first = call.results();
  for (int repeat = 0; repeat < 20; ++repeat) {
    call.poison();
    call.enqueue();
    expect_same_bits(call.results(), first);
  }
}

TEST_F(DeviceStep, TwoStreamsDoNotDisturbEachOther) {
  DeviceCall calls[] = {{hot(busy(), 1), kBackward}, {hot(busy(4), 2), kBackward}};
  const Stream streams[2];
  TensorMap alone[2];
  for (int i = 0; i < 2; ++i) {
    calls[i].enqueue(streams[i].get());
    alone[i] = calls[i].results();
  }
  for (int repeat = 0; repeat < 5; ++repeat) {
    for (DeviceCall& call : calls) call.poison();
    for (int i : {0, 1, 0, 1}) calls[i].enqueue(streams[i].get());
    for (int i = 0; i < 2; ++i) expect_same_bits(calls[i].results(), alone[i]);
  }
}

TEST_F(DeviceStep, AReplayedGraphEqualsAFreshRun) {
  LayerShape shape = busy();
  const Layer first = hot(shape, 1);
  shape.seqlens_q = {300, 5, 1, 1800};
  shape.seqlens_k = {300, 1300, 900, 2600};
  const Layer second = hot(shape, 2);
  DeviceCall call(first, kBackward);
  const Graph graph([&](cudaStream_t stream) { call.enqueue(stream); });
  const Stream stream;
  for (const Layer* layer : {&first, &second, &first}) {
    call.update(*layer);
    call.poison();
    graph.replay(stream);
    expect_same_bits(call.results(), run(*layer, kBackward));
  }
}

}  // namespace
}  // namespace openmsa::test
