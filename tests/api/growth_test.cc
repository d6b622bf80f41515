// Structs that grow: callers built against an older or a newer header.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstring>

#include "support/compare.h"

namespace openmsa::test {
namespace {

struct NewerConfig {
  Config config;
  std::int64_t unknown;
};

TEST(Growth, ANewerConfigIsTakenWhenItAsksForNothingNew) {
  NewerConfig newer{make_layer({}).config, 0};
  newer.config.struct_size = sizeof(newer);
  openmsa_plan* plan = nullptr;
  EXPECT_EQ(openmsa_plan_create(&newer.config, &plan), OPENMSA_SUCCESS) << openmsa_last_error();
  openmsa_plan_destroy(plan);

  newer.unknown = 1;
  EXPECT_EQ(openmsa_plan_create(&newer.config, &plan), OPENMSA_UNSUPPORTED);
  EXPECT_THAT(openmsa_last_error(), testing::HasSubstr("config"));
}

TEST(Growth, AnOlderConfigHasKeysOfItsDtype) {
  // A header that ended before kv_dtype.
  const Layer layer = make_layer({.page_size = 16});
  Config older = layer.config;
  older.struct_size = offsetof(openmsa_config, kv_dtype);
  older.kv_dtype = older.index_dtype = OPENMSA_FLOAT8_E4M3;
  TensorMap outputs = poisoned_outputs(layer, OPENMSA_OP_MSA_ATTENTION);
  Workspace workspace;
  Plan(older).run(OPENMSA_OP_MSA_ATTENTION, gather(layer, OPENMSA_OP_MSA_ATTENTION, outputs), workspace);
  expect_same_bits(outputs, run(layer, OPENMSA_OP_MSA_ATTENTION));
}

TEST(Growth, AnOlderConfigDoesNotBoundItsKeys) {
  // A header that ended before max_total_k.
  Layer layer = make_layer({});
  layer.add(run(layer, OPENMSA_OP_MSA_ATTENTION));
  Config older = layer.config;
  older.struct_size = offsetof(openmsa_config, max_total_k);
  older.max_total_k = 1;
  TensorMap outputs = poisoned_outputs(layer, OPENMSA_OP_KL_LOSS);
  Workspace workspace;
  Plan(older).run(OPENMSA_OP_KL_LOSS, gather(layer, OPENMSA_OP_KL_LOSS, outputs), workspace);
  expect_same_bits(outputs, run(layer, OPENMSA_OP_KL_LOSS));
}

TEST(Growth, AnOlderConfigRoundsQueriesWithAScale) {
  // A header that ended before index_q_rounding.
  const Layer layer = make_layer({.page_size = 16, .index_dtype = OPENMSA_FLOAT8_E4M3, .scales = Scales::kPerToken});
  Config older = layer.config;
  older.struct_size = offsetof(openmsa_config, index_q_rounding);
  older.index_q_rounding = OPENMSA_INDEX_Q_CAST;
  older.index_scale_per_block = 1;
  TensorMap outputs = poisoned_outputs(layer, OPENMSA_OP_BLOCK_SCORES);
  Workspace workspace;
  Plan(older).run(OPENMSA_OP_BLOCK_SCORES, gather(layer, OPENMSA_OP_BLOCK_SCORES, outputs), workspace);
  expect_same_bits(outputs, run(layer, OPENMSA_OP_BLOCK_SCORES));
}

TEST(Growth, AnOlderTensorsHasItsLastMembersAbsent) {
  // A header that ended before the gradients.
  const Layer layer = make_layer({});
  TensorMap outputs = poisoned_outputs(layer, OPENMSA_OP_MSA_ATTENTION);
  Tensors tensors = gather(layer, OPENMSA_OP_MSA_ATTENTION, outputs);
  tensors.struct_size = offsetof(openmsa_tensors, d_o);
  std::memset(&tensors.d_o, 0xff, sizeof(tensors) - offsetof(openmsa_tensors, d_o));
  Workspace workspace;
  Plan(layer.config).run(OPENMSA_OP_MSA_ATTENTION, tensors, workspace);
  expect_same_bits(outputs, run(layer, OPENMSA_OP_MSA_ATTENTION));
}

}  // namespace
}  // namespace openmsa::test
