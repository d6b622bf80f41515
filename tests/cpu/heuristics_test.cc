// The cut-offs by which a call is divided: their bounds hold for every plan, and the numbers that their reasons promise.
#include "cpu/heuristics.h"

#include <gtest/gtest.h>

#include "core/plan.h"

namespace openmsa::test {
namespace {

core::Plan plan_of(std::int32_t heads_q, std::int32_t heads_kv, std::int64_t max_batch = 1) {
  openmsa_config config;
  openmsa_config_init(&config);
  config.num_heads_q = heads_q;
  config.num_heads_kv = heads_kv;
  config.head_dim = config.index_dim = 128;
  config.max_batch = max_batch;
  config.max_total_q = config.max_seqlen_k = 1 << 20;
  return core::make_plan(config, 1);
}

core::Sequence sequence_of(std::int64_t seqlen_q, std::int64_t seqlen_k) {
  return {0, seqlen_q, 0, seqlen_k, nullptr, 0};
}

TEST(Heuristics, ATileOfGradientsHasAtMost64QueriesAnd512Rows) {
  for (const std::int32_t group : {1, 4, 8, 16, 64}) {
    const core::Plan plan = plan_of(4 * group, 4);
    const std::int64_t queries = cpu::queries_per_tile(plan);
    EXPECT_GE(queries, 1);
    EXPECT_LE(queries, 64);
    EXPECT_LE(queries * group, 512);
  }
  EXPECT_EQ(cpu::queries_per_tile(plan_of(4, 4)), 64);
  EXPECT_EQ(cpu::queries_per_tile(plan_of(64, 4)), 32);
}

TEST(Heuristics, ForwardTilesGrowWithTheSequenceUntilTheirRowsAreMany) {
  const core::Plan plan = plan_of(64, 4);
  EXPECT_EQ(cpu::forward_queries_per_tile(plan, sequence_of(17, 17)), 32) << "no smaller than a tile of gradients";
  EXPECT_EQ(cpu::forward_queries_per_tile(plan, sequence_of(2048, 2048)), 2048 * 4 / 64) << "64 tiles to share out";
  EXPECT_EQ(cpu::forward_queries_per_tile(plan, sequence_of(1 << 20, 1 << 20)), 4096 / 16) << "4096 rows";
  EXPECT_EQ(cpu::max_forward_queries(plan_of(1, 1)), 1024);
}

TEST(Heuristics, ATileOfDensePromptsHasAbout256Rows) {
  EXPECT_EQ(cpu::dense_queries_per_tile(plan_of(4, 4)), 256);
  EXPECT_EQ(cpu::dense_queries_per_tile(plan_of(64, 4)), 16);
  EXPECT_EQ(cpu::dense_queries_per_tile(plan_of(12, 4)), 85);
  EXPECT_EQ(cpu::dense_queries_per_tile(plan_of(256, 4)), 4);
}

TEST(Heuristics, WhatIsMultipliedAsItLiesTakesNoTimeToLoad) {
  core::Plan plan = plan_of(64, 4);
  EXPECT_EQ(cpu::step_times(plan, 16, false, 1).load_k, 0);
  EXPECT_EQ(cpu::step_times(plan, 16, false, 1).load_v, 0);
  plan.config.dtype = plan.config.kv_dtype = OPENMSA_BFLOAT16;
  EXPECT_EQ(cpu::step_times(plan, 16, false, 2).load_k, 0);
  EXPECT_GT(cpu::step_times(plan, 16, false, 2).load_v, 0) << "values are interleaved";
  plan.config.kv_dtype = OPENMSA_FLOAT8_E4M3;
  EXPECT_GT(cpu::step_times(plan, 16, false, 2).load_k, 0);
  EXPECT_LT(cpu::step_times(plan, 4, true, 2).scores, cpu::step_times(plan, 4, false, 2).scores);
}

TEST(Heuristics, ATileOfTheIndexBranchHasAbout256Columns) {
  EXPECT_EQ(cpu::index_queries_per_tile(plan_of(1, 1)), 128);
  EXPECT_EQ(cpu::index_queries_per_tile(plan_of(4, 4)), 64);
  EXPECT_EQ(cpu::index_queries_per_tile(plan_of(512, 512)), 1);
}

TEST(Heuristics, FewQueriesOverManyKeysAreSplit) {
  const core::Plan plan = plan_of(64, 4);
  EXPECT_EQ(cpu::num_segments(plan, sequence_of(17, 1 << 20)), 1) << "a prompt has tiles enough";
  EXPECT_EQ(cpu::num_segments(plan, sequence_of(16, 7 * 128)), 1) << "a segment has at least 4 kv_blocks";
  EXPECT_EQ(cpu::num_segments(plan, sequence_of(1, 8 * 128)), 2);
  EXPECT_EQ(cpu::num_segments(plan, sequence_of(1, 1 << 20)), 32);
  EXPECT_EQ(cpu::num_segments(plan, sequence_of(0, 0)), 1);
}

TEST(Heuristics, AFullBatchHasItemsEnoughWithFewerSegments) {
  for (const std::int64_t batch : {1, 3, 8, 64, 1000}) {
    const std::int64_t segments = cpu::max_segments(plan_of(64, 4, batch));
    EXPECT_GE(segments, 1);
    EXPECT_LE(segments, 32);
    EXPECT_LE(batch * segments, std::max<std::int64_t>(batch, 64));
  }
}

TEST(Heuristics, ATileOfDenseDecodeHas16To128Keys) {
  EXPECT_EQ(cpu::decode_keys_per_tile(plan_of(1, 1)), 128);
  EXPECT_EQ(cpu::decode_keys_per_tile(plan_of(8, 8)), 16);
  EXPECT_EQ(cpu::decode_keys_per_tile(plan_of(64, 4)), 32) << "128 KiB of k and v of 4 heads in fp32";
}

}  // namespace
}  // namespace openmsa::test
