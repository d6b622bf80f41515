// Plans from shapes and capacities: defaults, refusals, workspace sizes.
#include "core/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <openmsa/openmsa.hpp>
#include <string>

namespace openmsa::test {
namespace {

Config valid_config() {
  Config config = openmsa::config();
  config.num_heads_q = 16;
  config.num_heads_kv = 2;
  config.head_dim = 64;
  config.index_dim = 128;
  config.max_batch = 4;
  config.max_total_q = 100;
  config.max_seqlen_k = 1000;
  return config;
}

TEST(Plan, FillsInWhatFollowsFromTheConfiguration) {
  const core::Plan plan = core::make_plan(valid_config(), 3);
  EXPECT_EQ(plan.group_size, 8);
  EXPECT_EQ(plan.max_blocks, 8);
  EXPECT_DOUBLE_EQ(plan.softmax_scale, 1 / 8.0);
  EXPECT_DOUBLE_EQ(plan.index_scale, 1 / std::sqrt(128.0));
  EXPECT_EQ(plan.num_threads, 3);
  EXPECT_FALSE(plan.is_paged());
}

TEST(Plan, KeysHaveThePlansDtypeUnlessSaid) {
  Config config = valid_config();
  config.dtype = OPENMSA_BFLOAT16;
  const core::Plan plain = core::make_plan(config, 1);
  EXPECT_EQ(plain.config.kv_dtype, OPENMSA_BFLOAT16);
  EXPECT_EQ(plain.config.index_dtype, OPENMSA_BFLOAT16);
  EXPECT_FALSE(plain.has_fp8_kv() || plain.has_fp8_index());

  config.index_dtype = OPENMSA_FLOAT8_E4M3;  // contiguous or not
  EXPECT_TRUE(core::make_plan(config, 1).has_fp8_index());
  config.page_size = 16;
  config.kv_dtype = OPENMSA_FLOAT8_E4M3;
  EXPECT_TRUE(core::make_plan(config, 1).has_fp8_kv());
  config.index_dtype = OPENMSA_BFLOAT16;  // by name
  EXPECT_FALSE(core::make_plan(config, 1).has_fp8_index());
}

TEST(Plan, TotalKeysAreThoseOfOneSequenceOrTheQueriesUnlessSaid) {
  Config config = valid_config();
  EXPECT_EQ(core::make_plan(config, 1).max_total_k, 1000);
  config.max_total_q = 5000;
  EXPECT_EQ(core::make_plan(config, 1).max_total_k, 5000);
  config.max_total_k = 300;
  EXPECT_EQ(core::make_plan(config, 1).max_total_k, 300);
}

TEST(Plan, AShardHoldsEveryNthKvBlock) {
  Config config = valid_config();
  EXPECT_EQ(core::make_plan(config, 1).config.shard_count, 1);
  EXPECT_FALSE(core::make_plan(config, 1).is_sharded());
  config.shard_count = 3;
  std::int64_t held[] = {0, 0, 0};
  for (const std::int64_t seqlen_k : {0, 1, 128, 129, 384, 385, 1000}) {
    std::int64_t all = 0;
    for (config.shard_rank = 0; config.shard_rank < 3; ++config.shard_rank) {
      const core::Plan plan = core::make_plan(config, 1);
      EXPECT_TRUE(plan.is_sharded());
      held[config.shard_rank] = plan.held_keys(seqlen_k);
      all += plan.held_keys(seqlen_k);
    }
    EXPECT_EQ(all, seqlen_k);
  }
  EXPECT_THAT(held, testing::ElementsAre(3 * 128, 256 + 1000 - 7 * 128, 2 * 128)) << "of 8 kv_blocks, the last in part";

  config.shard_rank = 1;
  const core::Plan plan = core::make_plan(config, 1);
  EXPECT_TRUE(plan.holds(1) && plan.holds(4) && !plan.holds(0) && !plan.holds(5));
  const std::int64_t first[] = {plan.first_held(0), plan.first_held(1), plan.first_held(2), plan.first_held(5)};
  EXPECT_THAT(first, testing::ElementsAre(1, 1, 4, 7));
}

struct Refusal {
  std::string field;
  std::string value;
  std::function<void(Config&)> spoil;
  openmsa_status status;
};

class PlanRefusal : public testing::TestWithParam<Refusal> {};
INSTANTIATE_TEST_SUITE_P(
    Fields, PlanRefusal,
    testing::Values(
        Refusal{"topk", "0", [](Config& c) { c.topk = 0; }, OPENMSA_INVALID_ARGUMENT},
        Refusal{"topk", "65", [](Config& c) { c.topk = 65; }, OPENMSA_UNSUPPORTED},
        Refusal{"num_heads_q", "17", [](Config& c) { c.num_heads_q = 17; }, OPENMSA_INVALID_ARGUMENT},
        Refusal{"num_heads_q", "130", [](Config& c) { c.num_heads_q = 130; }, OPENMSA_UNSUPPORTED},
        Refusal{"num_heads_q", "negative", [](Config& c) { c.num_heads_q = -2; }, OPENMSA_INVALID_ARGUMENT},
        Refusal{"num_heads_kv", "0", [](Config& c) { c.num_heads_kv = 0; }, OPENMSA_INVALID_ARGUMENT},
        Refusal{"shard_count", "negative", [](Config& c) { c.shard_count = -1; }, OPENMSA_INVALID_ARGUMENT},
        Refusal{"shard_rank", "one_of_none", [](Config& c) { c.shard_rank = 1; }, OPENMSA_INVALID_ARGUMENT},
        Refusal{"shard_rank", "past_the_last", [](Config& c) { c.shard_count = c.shard_rank = 4; },
                OPENMSA_INVALID_ARGUMENT},
        Refusal{"shard_rank", "negative", [](Config& c) { c.shard_count = 4, c.shard_rank = -1; },
                OPENMSA_INVALID_ARGUMENT},
        Refusal{"head_dim", "0", [](Config& c) { c.head_dim = 0; }, OPENMSA_INVALID_ARGUMENT},
        Refusal{"head_dim", "65", [](Config& c) { c.head_dim = 65; }, OPENMSA_UNSUPPORTED},
        Refusal{"head_dim", "512", [](Config& c) { c.head_dim = 512; }, OPENMSA_UNSUPPORTED},
        Refusal{"index_dim", "12", [](Config& c) { c.index_dim = 12; }, OPENMSA_UNSUPPORTED},
        Refusal{"block_size", "0", [](Config& c) { c.block_size = 0; }, OPENMSA_INVALID_ARGUMENT},
        Refusal{"block_size", "48", [](Config& c) { c.block_size = 48; }, OPENMSA_UNSUPPORTED},
        Refusal{"block_size", "512", [](Config& c) { c.block_size = 512; }, OPENMSA_UNSUPPORTED},
        Refusal{"page_size", "48", [](Config& c) { c.page_size = 48; }, OPENMSA_INVALID_ARGUMENT},
        Refusal{"page_size", "256", [](Config& c) { c.page_size = 256; }, OPENMSA_INVALID_ARGUMENT},
        Refusal{"page_size", "negative", [](Config& c) { c.page_size = -1; }, OPENMSA_INVALID_ARGUMENT},
        Refusal{"num_init_blocks", "negative", [](Config& c) { c.num_init_blocks = -1; }, OPENMSA_INVALID_ARGUMENT},
        Refusal{"num_local_blocks", "negative", [](Config& c) { c.num_local_blocks = -1; }, OPENMSA_INVALID_ARGUMENT},
        Refusal{"softmax_scale", "nan", [](Config& c) { c.softmax_scale = NAN; }, OPENMSA_INVALID_ARGUMENT},
        Refusal{"softmax_scale", "inf", [](Config& c) { c.softmax_scale = INFINITY; }, OPENMSA_INVALID_ARGUMENT},
        Refusal{"max_batch", "0", [](Config& c) { c.max_batch = 0; }, OPENMSA_INVALID_ARGUMENT},
        Refusal{"max_total_q", "0", [](Config& c) { c.max_total_q = 0; }, OPENMSA_INVALID_ARGUMENT},
        Refusal{"max_seqlen_k", "2_31", [](Config& c) { c.max_seqlen_k = std::int64_t{1} << 31; },
                OPENMSA_INVALID_ARGUMENT},
        Refusal{"max_total_k", "negative", [](Config& c) { c.max_total_k = -1; }, OPENMSA_INVALID_ARGUMENT},
        Refusal{"max_total_k", "2_31", [](Config& c) { c.max_total_k = std::int64_t{1} << 31; },
                OPENMSA_INVALID_ARGUMENT},
        Refusal{"num_threads", "negative", [](Config& c) { c.num_threads = -1; }, OPENMSA_INVALID_ARGUMENT},
        Refusal{"backend", "0", [](Config& c) { c.backend = static_cast<openmsa_backend>(0); },
                OPENMSA_INVALID_ARGUMENT},
        Refusal{"dtype", "int32", [](Config& c) { c.dtype = OPENMSA_INT32; }, OPENMSA_INVALID_ARGUMENT},
        Refusal{"dtype", "fp64", [](Config& c) { c.dtype = OPENMSA_FLOAT64; }, OPENMSA_UNSUPPORTED},
        Refusal{"dtype", "e4m3", [](Config& c) { c.dtype = OPENMSA_FLOAT8_E4M3; }, OPENMSA_INVALID_ARGUMENT},
        Refusal{"kv_dtype", "e4m3_without_pages", [](Config& c) { c.kv_dtype = OPENMSA_FLOAT8_E4M3; },
                OPENMSA_UNSUPPORTED},
        Refusal{"kv_dtype", "bf16_beside_fp32", [](Config& c) { c.kv_dtype = OPENMSA_BFLOAT16; },
                OPENMSA_INVALID_ARGUMENT},
        Refusal{"index_dtype", "bf16_beside_fp32", [](Config& c) { c.index_dtype = OPENMSA_BFLOAT16; },
                OPENMSA_INVALID_ARGUMENT},
        Refusal{"index_dtype", "unknown", [](Config& c) { c.index_dtype = static_cast<openmsa_dtype>(7); },
                OPENMSA_INVALID_ARGUMENT},
        Refusal{"index_q_rounding", "without_fp8", [](Config& c) { c.index_q_rounding = OPENMSA_INDEX_Q_EXACT; },
                OPENMSA_INVALID_ARGUMENT},
        Refusal{"index_q_rounding", "unknown",
                [](Config& c) {
                  c.index_dtype = OPENMSA_FLOAT8_E4M3;
                  c.index_q_rounding = static_cast<openmsa_index_q_rounding>(3);
                },
                OPENMSA_INVALID_ARGUMENT},
        Refusal{"index_scale_per_block", "2", [](Config& c) { c.index_scale_per_block = 2; }, OPENMSA_INVALID_ARGUMENT},
        Refusal{"index_scale_per_block", "without_fp8",
                [](Config& c) {
                  c.page_size = 16;
                  c.index_scale_per_block = 1;
                },
                OPENMSA_INVALID_ARGUMENT},
        Refusal{"index_scale_per_block", "without_pages",
                [](Config& c) {
                  c.index_dtype = OPENMSA_FLOAT8_E4M3;
                  c.index_scale_per_block = 1;
                },
                OPENMSA_UNSUPPORTED},
        Refusal{"struct_size", "0", [](Config& c) { c.struct_size = 0; }, OPENMSA_INVALID_ARGUMENT}),
    [](const auto& info) { return info.param.field + "_" + info.param.value; });

TEST_P(PlanRefusal, NamesTheField) {
  Config config = valid_config();
  GetParam().spoil(config);
  openmsa_plan* plan = reinterpret_cast<openmsa_plan*>(1);
  EXPECT_EQ(openmsa_plan_create(&config, &plan), GetParam().status) << openmsa_last_error();
  EXPECT_EQ(plan, nullptr);
  const std::string message = openmsa_last_error();
  EXPECT_TRUE(message.starts_with(GetParam().field + ":") || message.starts_with("config." + GetParam().field + ":"))
      << message;
  EXPECT_NE(message.find("expected"), std::string::npos) << message;
  EXPECT_NE(message.find("got"), std::string::npos) << message;
}

TEST(PlanWorkspace, GrowsWithTheCapacities) {
  Config config = valid_config();
  const Plan small(config);
  config.max_total_q *= 10;
  config.max_seqlen_k *= 10;
  const Plan large(config);
  for (int op = 0; op < OPENMSA_OP_COUNT; ++op) {
    EXPECT_LE(small.workspace_bytes(static_cast<openmsa_op>(op)), large.workspace_bytes(static_cast<openmsa_op>(op)));
  }
}

/// No N x N and no N x blocks matrix: at a million keys the whole layer's workspace stays far below one score per query
/// and kv_block.
TEST(PlanWorkspace, HoldsNoScoreMatrix) {
  Config config = valid_config();
  config.max_seqlen_k = 1 << 20;
  config.max_total_q = 1 << 20;
  config.num_threads = 8;
  const double scores = 4.0 * config.num_heads_kv * static_cast<double>(config.max_total_q) *
                        static_cast<double>(config.max_seqlen_k / config.block_size);
  EXPECT_LT(static_cast<double>(Plan(config).workspace_bytes(OPENMSA_OP_MSA_ATTENTION)), scores / 100);
}

TEST(PlanCreate, RefusesMissingPointers) {
  const Config config = valid_config();
  openmsa_plan* plan = nullptr;
  EXPECT_EQ(openmsa_plan_create(nullptr, &plan), OPENMSA_INVALID_ARGUMENT);
  EXPECT_EQ(openmsa_plan_create(&config, nullptr), OPENMSA_INVALID_ARGUMENT);
  EXPECT_EQ(openmsa_plan_workspace_bytes(nullptr, OPENMSA_OP_TOPK, nullptr), OPENMSA_INVALID_ARGUMENT);
  openmsa_plan_destroy(nullptr);
}

}  // namespace
}  // namespace openmsa::test
