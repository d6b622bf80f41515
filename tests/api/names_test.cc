// Names of operations and tensors, and what the library says of them: as openmsa.h does.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <string>
#include <vector>

#include "support/compare.h"

namespace openmsa::test {
namespace {

Config paged_fp8_config() {
  Config config = openmsa::config();
  config.dtype = OPENMSA_BFLOAT16;
  config.page_size = 64;
  config.kv_dtype = config.index_dtype = OPENMSA_FLOAT8_E4M3;
  return config;
}

std::vector<std::string> tensors_that(const Config& config, openmsa_op op, openmsa_use use) {
  std::vector<std::string> names;
  for (const char* name : tensor_names()) {
    if ((use_of(config, op, name) & use) != 0) names.emplace_back(name);
  }
  return names;
}

TEST(Names, AnOperationHasTheNameOfItsFunction) {
  EXPECT_STREQ(openmsa_op_name(OPENMSA_OP_BLOCK_SCORES), "block_scores");
  EXPECT_STREQ(openmsa_op_name(OPENMSA_OP_DENSE_ATTENTION_BACKWARD), "dense_attention_backward");
  EXPECT_STREQ(openmsa_op_name(OPENMSA_OP_APPEND_KV), "append_kv");
  EXPECT_STREQ(openmsa_op_name(OPENMSA_OP_MERGE_PARTIALS), "merge_partials");
  EXPECT_EQ(openmsa_op_name(OPENMSA_OP_COUNT), nullptr);
  EXPECT_EQ(openmsa_op_name(static_cast<openmsa_op>(-1)), nullptr);
}

TEST(Names, EveryOperationIsFoundByItsName) {
  for (int number = 0; number < OPENMSA_OP_COUNT; ++number) {
    const auto op = static_cast<openmsa_op>(number);
    EXPECT_EQ(op_from_name(name_of(op)), op);
  }
}

TEST(Names, AnUnknownOperationIsRefusedByName) {
  openmsa_op op = OPENMSA_OP_TOPK;
  for (const char* name : {"", "attention", "openmsa_topk", "topk "}) {
    EXPECT_EQ(openmsa_op_from_name(name, &op), OPENMSA_INVALID_ARGUMENT) << name;
    EXPECT_EQ(openmsa_last_error(), std::string("op: expected the name of an operation, got ") + name);
  }
  EXPECT_EQ(openmsa_op_from_name(nullptr, &op), OPENMSA_INVALID_ARGUMENT);
  EXPECT_EQ(openmsa_op_from_name("topk", nullptr), OPENMSA_INVALID_ARGUMENT);
  EXPECT_EQ(op, OPENMSA_OP_TOPK);
}

TEST(Names, TensorsComeInTheOrderOfTheStruct) {
  Tensors tensors = openmsa::tensors();
  auto* const first = reinterpret_cast<std::byte*>(&tensors.cu_seqlens_q);
  ASSERT_EQ(static_cast<std::size_t>(openmsa_tensor_count()),
            (sizeof(openmsa_tensors) - offsetof(openmsa_tensors, cu_seqlens_q)) / sizeof(openmsa_tensor));
  for (std::int32_t i = 0; i < openmsa_tensor_count(); ++i) {
    const auto* const member = reinterpret_cast<std::byte*>(openmsa_tensors_at(&tensors, openmsa_tensor_name(i)));
    EXPECT_EQ(member - first, static_cast<std::ptrdiff_t>(sizeof(openmsa_tensor)) * i) << openmsa_tensor_name(i);
  }
  EXPECT_EQ(openmsa_tensor_name(-1), nullptr);
  EXPECT_EQ(openmsa_tensor_name(openmsa_tensor_count()), nullptr);
}

TEST(Names, ATensorIsTheMemberOfItsName) {
  Tensors tensors = openmsa::tensors();
  EXPECT_EQ(&at(tensors, "q"), &tensors.q);
  EXPECT_EQ(&at(tensors, "index_k_scale"), &tensors.index_k_scale);
  EXPECT_EQ(&at(tensors, "score_recall"), &tensors.score_recall);
  EXPECT_EQ(openmsa_tensors_at(&tensors, "struct_size"), nullptr);
  EXPECT_EQ(openmsa_tensors_at(&tensors, nullptr), nullptr);
  EXPECT_EQ(openmsa_tensors_at(nullptr, "q"), nullptr);
  EXPECT_THROW(at(tensors, "p"), std::out_of_range);
}

TEST(Names, ATensorPastTheEndOfAnOlderStructIsNotThere) {
  Tensors tensors = openmsa::tensors();
  tensors.struct_size = offsetof(openmsa_tensors, d_o);
  EXPECT_EQ(openmsa_tensors_at(&tensors, "lse"), &tensors.lse);
  EXPECT_EQ(openmsa_tensors_at(&tensors, "d_o"), nullptr);
}

TEST(Names, ExtentsAreThoseOfTheHeader) {
  const auto shape = [](const char* name) {
    std::vector<std::string> extents;
    for (std::int32_t d = 0; openmsa_tensor_extent(name, d) != nullptr; ++d) {
      extents.emplace_back(openmsa_tensor_extent(name, d));
    }
    return extents;
  };
  EXPECT_THAT(shape("cu_seqlens_q"), testing::ElementsAre("batch + 1"));
  EXPECT_THAT(shape("topk_indices"), testing::ElementsAre("num_heads_kv", "total_q", "topk"));
  EXPECT_THAT(shape("block_scores"), testing::ElementsAre("num_heads_kv", "total_q", "num_blocks"));
  EXPECT_THAT(shape("v_cache"), testing::ElementsAre("num_pages", "page_size", "num_heads_kv", "head_dim"));
  EXPECT_THAT(shape("index_k_scale"), testing::ElementsAre("key_tokens"));
  EXPECT_THAT(shape("kl_loss"), testing::ElementsAre("1"));
  EXPECT_THAT(shape("partial_o"), testing::ElementsAre("shard_count", "total_q", "num_heads_q", "head_dim"));
  EXPECT_THAT(shape("all_candidates"), testing::ElementsAre("shard_count", "num_heads_kv", "total_q", "topk"));
  EXPECT_THAT(shape("p"), testing::IsEmpty());
  EXPECT_EQ(openmsa_tensor_extent("q", -1), nullptr);
}

TEST(Names, DtypesFollowFromTheConfiguration) {
  const Config config = paged_fp8_config();
  EXPECT_EQ(openmsa_tensor_dtype(&config, "q"), OPENMSA_BFLOAT16);
  EXPECT_EQ(openmsa_tensor_dtype(&config, "o"), OPENMSA_BFLOAT16);
  EXPECT_EQ(openmsa_tensor_dtype(&config, "index_q"), OPENMSA_BFLOAT16);
  EXPECT_EQ(openmsa_tensor_dtype(&config, "index_k"), OPENMSA_BFLOAT16) << "new keys, on their way into the cache";
  EXPECT_EQ(openmsa_tensor_dtype(&config, "k_cache"), OPENMSA_FLOAT8_E4M3);
  EXPECT_EQ(openmsa_tensor_dtype(&config, "index_k_cache"), OPENMSA_FLOAT8_E4M3);
  EXPECT_EQ(openmsa_tensor_dtype(&config, "k_scale"), OPENMSA_FLOAT32);
  EXPECT_EQ(openmsa_tensor_dtype(&config, "lse"), OPENMSA_FLOAT32);
  EXPECT_EQ(openmsa_tensor_dtype(&config, "topk_indices"), OPENMSA_INT32);
  EXPECT_EQ(openmsa_tensor_dtype(&config, "candidates"), OPENMSA_INT64);
  EXPECT_EQ(openmsa_tensor_dtype(&config, "partial_o"), OPENMSA_BFLOAT16);
  EXPECT_EQ(openmsa_tensor_dtype(&config, "partial_lse"), OPENMSA_FLOAT32);
  EXPECT_EQ(openmsa_tensor_dtype(&config, "p"), openmsa_dtype{});
  EXPECT_EQ(openmsa_tensor_dtype(nullptr, "q"), openmsa_dtype{});

  Config contiguous = openmsa::config();
  contiguous.dtype = OPENMSA_FLOAT64;
  EXPECT_EQ(openmsa_tensor_dtype(&contiguous, "k_cache"), OPENMSA_FLOAT64) << "kv_dtype is that of the plan";
  EXPECT_EQ(openmsa_tensor_dtype(&contiguous, "lse"), OPENMSA_FLOAT64);
  contiguous.index_dtype = OPENMSA_FLOAT8_E4M3;
  EXPECT_EQ(openmsa_tensor_dtype(&contiguous, "index_k"), OPENMSA_FLOAT8_E4M3);
}

TEST(Names, UsesAreThoseOfTheHeader) {
  const Config config = openmsa::config();
  EXPECT_THAT(tensors_that(config, OPENMSA_OP_KL_LOSS, OPENMSA_READS),
              testing::ElementsAre("q", "k", "index_q", "index_k", "lse"));
  EXPECT_THAT(tensors_that(config, OPENMSA_OP_KL_LOSS, OPENMSA_MAY_READ),
              testing::ElementsAre("cu_seqlens_q", "cu_seqlens_k", "topk_indices", "kl_weights"));
  EXPECT_EQ(use_of(config, OPENMSA_OP_DENSE_ATTENTION_BACKWARD, "d_lse"), OPENMSA_MAY_READ);
  EXPECT_THAT(tensors_that(config, OPENMSA_OP_KL_LOSS, OPENMSA_WRITES), testing::IsEmpty());
  EXPECT_THAT(tensors_that(config, OPENMSA_OP_KL_LOSS, OPENMSA_MAY_WRITE),
              testing::ElementsAre("d_q", "d_k", "d_index_q", "d_index_k", "kl_loss"));
  EXPECT_THAT(tensors_that(config, OPENMSA_OP_MSA_ATTENTION_BACKWARD, OPENMSA_READS),
              testing::ElementsAre("q", "k", "v", "index_q", "index_k", "topk_indices", "o", "lse", "d_o"));
  EXPECT_THAT(tensors_that(config, OPENMSA_OP_MSA_ATTENTION_BACKWARD, OPENMSA_WRITES),
              testing::ElementsAre("d_q", "d_k", "d_v"));
  EXPECT_THAT(tensors_that(config, OPENMSA_OP_MSA_ATTENTION_BACKWARD, OPENMSA_MAY_WRITE),
              testing::ElementsAre("d_index_q", "d_index_k", "kl_loss"));
}

TEST(Names, UsesFollowTheKeysIntoThePages) {
  const Config config = paged_fp8_config();
  EXPECT_THAT(tensors_that(config, OPENMSA_OP_MSA_ATTENTION, OPENMSA_READS),
              testing::ElementsAre("seqlens_k", "block_table", "q", "index_q", "k_cache", "v_cache", "index_k_cache"));
  EXPECT_THAT(tensors_that(config, OPENMSA_OP_MSA_ATTENTION, OPENMSA_MAY_READ),
              testing::ElementsAre("cu_seqlens_q", "k_scale", "v_scale", "index_k_scale"));
  EXPECT_EQ(use_of(config, OPENMSA_OP_APPEND_KV, "k_scale"), OPENMSA_MAY_READ | OPENMSA_MAY_WRITE);
  EXPECT_TRUE(reads(config, OPENMSA_OP_APPEND_KV, "k"));
  EXPECT_TRUE(writes(config, OPENMSA_OP_APPEND_KV, "k_cache"));
  EXPECT_FALSE(writes(config, OPENMSA_OP_APPEND_KV, "k"));
  EXPECT_THAT(tensors_that(config, OPENMSA_OP_SELECT_CANDIDATES, OPENMSA_READS),
              testing::ElementsAre("seqlens_k", "block_table", "index_q", "index_k_cache"));
}

TEST(Names, WhatMergesReadsNoKeys) {
  const Config config = paged_fp8_config();
  EXPECT_THAT(tensors_that(config, OPENMSA_OP_MERGE_CANDIDATES, OPENMSA_READS),
              testing::ElementsAre("seqlens_k", "all_candidates"));
  EXPECT_THAT(tensors_that(config, OPENMSA_OP_MERGE_PARTIALS, OPENMSA_READS),
              testing::ElementsAre("partial_o", "partial_lse"));
  for (const openmsa_op op : {OPENMSA_OP_MERGE_CANDIDATES, OPENMSA_OP_MERGE_PARTIALS}) {
    EXPECT_THAT(tensors_that(config, op, OPENMSA_MAY_READ), testing::ElementsAre("cu_seqlens_q"));
  }
}

TEST(Names, WhatIsUnknownHasNoUse) {
  const Config config = openmsa::config();
  EXPECT_EQ(openmsa_tensor_use(&config, OPENMSA_OP_COUNT, "q"), 0);
  EXPECT_EQ(openmsa_tensor_use(&config, OPENMSA_OP_MSA_ATTENTION, "p"), 0);
  EXPECT_EQ(openmsa_tensor_use(nullptr, OPENMSA_OP_MSA_ATTENTION, "q"), 0);
}

TEST(Check, RefusesWhatRunWouldAndWritesNothing) {
  const Layer layer = make_layer({});
  const Plan plan(layer.config);
  TensorMap outputs = poisoned_outputs(layer, OPENMSA_OP_MSA_ATTENTION);
  const TensorMap before = outputs;
  Tensors tensors = gather(layer, OPENMSA_OP_MSA_ATTENTION, outputs);
  EXPECT_EQ(openmsa_check(plan.get(), OPENMSA_OP_MSA_ATTENTION, &tensors), OPENMSA_SUCCESS) << openmsa_last_error();
  expect_same_bits(outputs, before);

  tensors.q.rank = 2;
  EXPECT_EQ(openmsa_check(plan.get(), OPENMSA_OP_MSA_ATTENTION, &tensors), OPENMSA_INVALID_ARGUMENT);
  EXPECT_STREQ(openmsa_last_error(), "q: expected rank 3, got 2");
  EXPECT_THROW(plan.check_tensors(OPENMSA_OP_MSA_ATTENTION, tensors), Error);
  EXPECT_EQ(openmsa_check(nullptr, OPENMSA_OP_MSA_ATTENTION, &tensors), OPENMSA_INVALID_ARGUMENT);
}

}  // namespace
}  // namespace openmsa::test
