// The gradient of the sparse layer in one call on the GPU, at the size of several items and tiles: on streams, in graphs,
// and beside the two calls that it stands for.
#include "cuda/training/busy_layer.h"

namespace openmsa::test {
namespace {

constexpr openmsa_op kBackward = OPENMSA_OP_MSA_ATTENTION_BACKWARD;

class DeviceStep : public OnHopper {};

TEST_F(DeviceStep, LargeCallsMatchTheCpu) {
  for (const std::int32_t group_size : {1, 2, 4, 8, 16}) {
    SCOPED_TRACE(testing::Message() << "group_size " << group_size);
    const Layer layer = hot_layer(busy_shape(group_size), false);
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
    const Layer layer = hot_layer(busy_shape(group_size), false);
    const TensorMap all = run(layer, kBackward), alone = run(layer, OPENMSA_OP_KL_LOSS);
    for (const char* name : {"kl_loss", "d_index_q", "d_index_k"}) {
      EXPECT_LT(relative_error(all.at(name), alone.at(name)), 4e-3) << name << ", group_size " << group_size;
    }
  }
}

TEST_F(DeviceStep, TwentyRunsAreEqual) { expect_equal_runs(hot_layer(busy_shape(), false), kBackward); }

TEST_F(DeviceStep, TwoStreamsDoNotDisturbEachOther) {
  expect_undisturbed({hot_layer(busy_shape(), false, 1), hot_layer(busy_shape(4), false, 2)}, kBackward);
}

TEST_F(DeviceStep, AReplayedGraphEqualsAFreshRun) {
  expect_replays(hot_layer(busy_shape(), false, 1), hot_layer(busy_shape_reordered(), false, 2), kBackward);
}

}  // namespace
}  // namespace openmsa::test
