// Calls that contradict themselves: the status, a message with argument, expected and got, and untouched outputs.
#include "api/refusal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <utility>

#include "api/check.h"
#include "core/error.h"

namespace openmsa::test {
namespace {

using testing::HasSubstr;

constexpr openmsa_op kMsa = OPENMSA_OP_MSA_ATTENTION;
constexpr openmsa_op kSparse = OPENMSA_OP_SPARSE_ATTENTION;
constexpr openmsa_op kBackward = OPENMSA_OP_SPARSE_ATTENTION_BACKWARD;
constexpr openmsa_op kKl = OPENMSA_OP_KL_LOSS;
constexpr openmsa_op kFused = OPENMSA_OP_MSA_ATTENTION_BACKWARD;
constexpr openmsa_op kTopk = OPENMSA_OP_TOPK;

/// Puts `value` into element `i` of an int32 input.
std::function<void(Call&)> put(const char* name, std::int64_t i, double value) {
  return [=](Call& call) { call.layer.tensors.at(name).set(i, value); };
}

/// The layer of every case: two sequences of 40 and 70 keys with 40 and 2 queries, kv_blocks of 32, topk 4.
const std::vector<Refusal>& refusals() {
  static const std::vector<Refusal> kRefusals = {
      {"rank", kMsa, [](Call& c) { c.tensors.q.rank = 2; }, {"q: expected rank 3, got 2"}},
      {"rank_past_the_maximum", kMsa, [](Call& c) { c.tensors.k.rank = 9; }, {"k: expected rank 3, got 9"}},
      {"dtype", kMsa, [](Call& c) { c.tensors.v.dtype = OPENMSA_BFLOAT16; }, {"v: expected dtype fp32, got bf16"}},
      {"dtype_of_indices",
       kSparse,
       [](Call& c) { c.tensors.topk_indices.dtype = OPENMSA_FLOAT32; },
       {"topk_indices: expected dtype int32, got fp32"}},
      {"dtype_of_result", kMsa, [](Call& c) { c.tensors.o.dtype = OPENMSA_INT32; }, {"o: expected dtype", "int32"}},
      {"dtype_of_figure",
       kMsa,
       [](Call& c) { c.tensors.lse.dtype = OPENMSA_FLOAT64; },
       {"lse: expected dtype fp32, got fp64"}},
      {"dtype_unknown",
       kMsa,
       [](Call& c) { c.tensors.q.dtype = static_cast<openmsa_dtype>(8); },
       {"q: expected dtype"}},
      {"last_stride",
       kMsa,
       [](Call& c) { c.tensors.q.strides[2] = 2; },
       {"q: expected stride 1 in the last dimension, got 2"}},
      {"negative_stride", kMsa, [](Call& c) { c.tensors.k.strides[0] = -1; }, {"k: expected", "strides[0]", "-1"}},
      {"stride_past_all_memory",
       kMsa,
       [](Call& c) { c.tensors.q.strides[0] = std::int64_t{1} << 61; },
       {"q: expected strides with offsets below 2^63 bytes, got [2305843009213693952, 64, 1] for shape [42, 4, 64]"}},
      {"strides_past_all_memory_together",
       kMsa,
       [](Call& c) {
         c.tensors.o.strides[0] = std::int64_t{1} << 55;
         c.tensors.o.strides[1] = std::int64_t{1} << 58;
       },
       {"o: expected strides with offsets below 2^63 bytes"}},
      {"stride_past_all_memory_of_one_row",
       kMsa,
       [](Call& c) { c.tensors.cu_seqlens_q.strides[0] = INT64_MAX; },
       {"cu_seqlens_q: expected strides with offsets"}},
      {"overlapping_output", kMsa, [](Call& c) { c.tensors.o.strides[0] = 8; }, {"o: expected", "overlap"}},
      {"alignment",
       kMsa,
       [](Call& c) { c.tensors.q.data = static_cast<char*>(c.tensors.q.data) + 2; },
       {"q: expected", "aligned", "got"}},
      {"negative_extent", kMsa, [](Call& c) { c.tensors.q.shape[0] = -4; }, {"q: expected", "shape[0]", "-4"}},
      {"null_data", kMsa, [](Call& c) { c.tensors.q.data = nullptr; }, {"q: expected", "NULL"}},
      {"heads_q", kMsa, [](Call& c) { c.tensors.q.shape[1] = 3; }, {"q: expected", "num_heads_q = 4", "got 3"}},
      {"heads_kv", kMsa, [](Call& c) { c.tensors.k.shape[1] = 1; }, {"k: expected", "num_heads_kv = 2", "got 1"}},
      {"head_dim", kMsa, [](Call& c) { c.tensors.v.shape[2] = 32; }, {"v: expected", "head_dim = 64", "got 32"}},
      {"topk_extent",
       kSparse,
       [](Call& c) { c.tensors.topk_indices.shape[2] = 3; },
       {"topk_indices: expected", "topk = 4", "got 3"}},
      {"total_q_differs", kMsa, [](Call& c) { c.tensors.index_q.shape[0] = 41; }, {"index_q: expected", "42", "41"}},
      {"total_k_differs", kMsa, [](Call& c) { c.tensors.v.shape[0] = 109; }, {"v: expected", "110", "109"}},
      {"batch_differs", kMsa, [](Call& c) { c.tensors.cu_seqlens_k.shape[0] = 2; }, {"cu_seqlens_k: expected", "got"}},
      {"cu_seqlens_q_without_entry",
       kMsa,
       [](Call& c) { c.tensors.cu_seqlens_q.shape[0] = 0; },
       {"cu_seqlens_q: expected", "got 0"}},
      {"cu_seqlens_q_start", kMsa, put("cu_seqlens_q", 0, 1), {"cu_seqlens_q: expected", "got 1"}},
      {"cu_seqlens_q_decreasing", kMsa, put("cu_seqlens_q", 1, 43), {"cu_seqlens_q: expected", "43", "42"}},
      {"cu_seqlens_q_overlong", kMsa, put("cu_seqlens_q", 2, 43), {"cu_seqlens_q: expected", "42", "got 43"}},
      {"cu_seqlens_k_decreasing", kMsa, put("cu_seqlens_k", 1, 111), {"cu_seqlens_k: expected", "111", "110"}},
      {"cu_seqlens_k_negative", kMsa, put("cu_seqlens_k", 1, -5), {"cu_seqlens_k: expected", "-5"}},
      {"cu_seqlens_k_overlong", kMsa, put("cu_seqlens_k", 2, 111), {"cu_seqlens_k: expected", "110", "got 111"}},
      {"cu_seqlens_k_missing", kMsa, [](Call& c) { c.tensors.cu_seqlens_k = {}; }, {"cu_seqlens_k: required"}},
      {"cu_seqlens_q_missing", kMsa, [](Call& c) { c.tensors.cu_seqlens_q = {}; }, {"cu_seqlens_q: "}},
      {"index_past_the_sequence", kSparse, put("topk_indices", 0, 2), {"topk_indices: expected", "got 2", "[0, 0, 0]"}},
      {"index_negative", kSparse, put("topk_indices", 0, -2), {"topk_indices: expected", "got -2"}},
      {"index_twice",
       kSparse,
       [](Call& c) {
         c.layer.tensors.at("topk_indices").set({1, 39, 0}, 1);
         c.layer.tensors.at("topk_indices").set({1, 39, 1}, 1);
       },
       {"topk_indices: expected", "got 1 twice", "[1, 39, 1]"}},
      {"index_after_minus_one",
       kSparse,
       [](Call& c) {
         c.layer.tensors.at("topk_indices").set({0, 41, 0}, -1);
         c.layer.tensors.at("topk_indices").set({0, 41, 1}, 1);
       },
       {"topk_indices: expected", "-1", "[0, 41, 1]"}},
      {"index_out_of_range_backward", kBackward, put("topk_indices", 1, 7), {"topk_indices: expected", "got 7"}},
      {"index_out_of_range_kl", kKl, put("topk_indices", 1, 7), {"topk_indices: expected", "got 7"}},
      {"too_few_score_columns",
       kTopk,
       [](Call& c) { c.tensors.block_scores.shape[2] = 2; },
       {"block_scores: expected", "3", "got 2"}},
      {"missing_input", kMsa, [](Call& c) { c.tensors.index_k = {}; }, {"index_k: required", "got none"}},
      {"missing_output", kMsa, [](Call& c) { c.tensors.o = {}; }, {"o: required", "got none"}},
      {"missing_lse_in_backward", kBackward, [](Call& c) { c.tensors.lse = {}; }, {"lse: required", "got none"}},
      {"unused_tensor", kMsa, [](Call& c) { c.tensors.d_q = c.tensors.q; }, {"d_q: not used by openmsa_msa_attention"}},
      {"unused_cache", kMsa, [](Call& c) { c.tensors.k_cache = c.tensors.k; }, {"k_cache: not used"}},
      {"lse_gradient_in_forward",
       kMsa,
       [](Call& c) { c.tensors.d_lse = c.layer.tensors.at("lse").view(); },
       {"d_lse: not used by openmsa_msa_attention"}},
      {"lse_gradient_of_fewer_heads",
       kBackward,
       [](Call& c) {
         c.tensors.d_lse = c.layer.tensors.at("lse").view();
         c.tensors.d_lse.shape[1] = 2;
       },
       {"d_lse: expected", "num_heads_q = 4", "got 2"}},
      {"weights_of_fewer_queries",
       kKl,
       [](Call& c) {
         const std::int64_t shape[] = {41};
         c.tensors.kl_weights = openmsa_contiguous(c.layer.tensors.at("lse").view().data, OPENMSA_FLOAT32, 1, shape);
       },
       {"kl_weights: expected total_q = 42", "got 41"}},
      {"weights_dtype",
       kKl,
       [](Call& c) {
         const std::int64_t shape[] = {42};
         c.tensors.kl_weights = openmsa_contiguous(c.layer.tensors.at("lse").view().data, OPENMSA_INT32, 1, shape);
       },
       {"kl_weights: expected dtype fp32, got int32"}},
      {"no_output_at_all",
       kKl,
       [](Call& c) { c.tensors.kl_loss = c.tensors.d_index_q = c.tensors.d_index_k = {}; },
       {"openmsa_kl_loss: expected at least one of d_q, d_k, d_index_q, d_index_k, kl_loss, got none"}},
      {"no_output_of_kl",
       kFused,
       [](Call& c) { c.tensors.kl_loss = c.tensors.d_index_q = c.tensors.d_index_k = {}; },
       {"openmsa_msa_attention_backward: expected at least one of d_index_q, d_index_k, kl_loss, got none"}},
      {"missing_selection_in_fused_backward",
       kFused,
       [](Call& c) { c.tensors.topk_indices = {}; },
       {"topk_indices: required by openmsa_msa_attention_backward, got none"}},
      {"missing_gradient_of_fused_backward",
       kFused,
       [](Call& c) { c.tensors.d_k = {}; },
       {"d_k: required by openmsa_msa_attention_backward, got none"}},
      {"index_out_of_range_fused_backward", kFused, put("topk_indices", 1, 7), {"topk_indices: expected", "got 7"}},
      {"output_on_input", kMsa, [](Call& c) { c.tensors.o.data = c.tensors.q.data; }, {"o: expected", "q"}},
      {"output_at_the_workspace",
       kMsa,
       [](Call& c) { c.tensors.o.data = c.workspace.data; },
       {"o: expected memory outside the workspace, got"}},
      {"input_that_ends_in_the_workspace",
       kMsa,
       [](Call& c) { c.tensors.q.data = static_cast<char*>(c.workspace.data) - 64; },
       {"q: expected memory outside the workspace, got"}},
      {"workspace_too_small", kMsa, [](Call& c) { c.workspace.bytes -= 1; }, {"workspace: expected at least", "got"}},
      {"workspace_missing", kMsa, [](Call& c) { c.workspace.data = nullptr; }, {"workspace: expected", "NULL"}},
      {"workspace_misaligned",
       kMsa,
       [](Call& c) { c.workspace.data = static_cast<char*>(c.workspace.data) + 8; },
       {"workspace: expected 64-byte alignment, got"}},
      {"workspace_stream", kMsa, [](Call& c) { c.workspace.stream = &c; }, {"workspace.stream: expected NULL", "got"}},
      {"struct_size", kMsa, [](Call& c) { c.tensors.struct_size = 0; }, {"tensors.struct_size: expected", "got 0"}},
      {"page_number_past_the_cache",
       kMsa,
       put("block_table", 0, 99),
       {"block_table: expected", "got 99"},
       OPENMSA_INVALID_ARGUMENT,
       16},
      {"page_number_negative",
       kMsa,
       put("block_table", 1, -1),
       {"block_table: expected", "got -1", "[0, 1]"},
       OPENMSA_INVALID_ARGUMENT,
       16},
      {"too_few_pages_in_the_table",
       kMsa,
       [](Call& c) { c.tensors.block_table.shape[1] = 4; },
       {"block_table: expected at least 5", "got 4"},
       OPENMSA_INVALID_ARGUMENT,
       16},
      {"seqlens_k_negative",
       kMsa,
       put("seqlens_k", 0, -1),
       {"seqlens_k: expected", "got -1"},
       OPENMSA_INVALID_ARGUMENT,
       16},
      {"seqlens_k_past_the_capacity",
       kMsa,
       put("seqlens_k", 1, 71),
       {"seqlens_k: expected", "70", "got 71"},
       OPENMSA_INVALID_ARGUMENT,
       16},
      {"page_size_of_the_cache",
       kMsa,
       [](Call& c) { c.tensors.k_cache.shape[1] = 32; },
       {"k_cache: expected", "page_size = 16", "got 32"},
       OPENMSA_INVALID_ARGUMENT,
       16},
      {"contiguous_keys_with_pages",
       kMsa,
       [](Call& c) { c.tensors.k = c.layer.tensors.at("k").view(); },
       {"k: not used"},
       OPENMSA_INVALID_ARGUMENT,
       16},
      {"paged_backward",
       kBackward,
       [](Call&) {},
       {"page_size: openmsa_sparse_attention_backward"},
       OPENMSA_UNSUPPORTED,
       16},
      {"paged_kl", kKl, [](Call&) {}, {"page_size: openmsa_kl_loss"}, OPENMSA_UNSUPPORTED, 16},
      {"paged_fused_backward",
       kFused,
       [](Call&) {},
       {"page_size: openmsa_msa_attention_backward"},
       OPENMSA_UNSUPPORTED,
       16},
      {"append_without_pages", OPENMSA_OP_APPEND_KV, [](Call&) {}, {"page_size: openmsa_append_kv", "got page_size 0"}},
  };
  return kRefusals;
}

class CallRefusal : public testing::TestWithParam<Refusal> {};
INSTANTIATE_TEST_SUITE_P(Cases, CallRefusal, testing::ValuesIn(refusals()),
                         [](const auto& info) { return info.param.name; });

TEST_P(CallRefusal, NamesArgumentExpectedAndGotAndWritesNothing) { expect_refused(GetParam()); }

TEST(CallRefusals, CapacitiesOfThePlanBoundTheCall) {
  const Layer layer = make_layer({.seqlens_q = {40, 2}, .seqlens_k = {40, 70}});
  const std::vector<std::pair<std::int64_t Config::*, std::string>> capacities = {
      {&Config::max_total_q, "max_total_q"},
      {&Config::max_batch, "max_batch"},
      {&Config::max_seqlen_k, "max_seqlen_k"}};
  for (const auto& [capacity, name] : capacities) {
    Layer tight = layer;
    tight.config.*capacity -= 1;
    try {
      run(tight, kMsa);
      ADD_FAILURE() << name << " was exceeded without an error";
    } catch (const Error& error) {
      EXPECT_EQ(error.status(), OPENMSA_INVALID_ARGUMENT);
      EXPECT_THAT(error.what(), HasSubstr(name));
    }
  }
}

TEST(CallRefusals, TotalKeysOfTrainingAreBoundedWhereThePlanSays) {
  Layer layer = make_layer({.seqlens_q = {40, 2}, .seqlens_k = {40, 70}});
  layer.add(run(layer, kMsa));
  ASSERT_GT(layer.total_k(), std::max(layer.config.max_total_q, layer.config.max_seqlen_k));
  for (const openmsa_op op : {kBackward, OPENMSA_OP_DENSE_ATTENTION_BACKWARD, kKl, kFused}) {
    for (const std::int64_t unbound_or_enough : {0, 110}) {
      layer.config.max_total_k = unbound_or_enough;
      EXPECT_NO_THROW(run(layer, op)) << unbound_or_enough;
    }
    layer.config.max_total_k = 109;
    EXPECT_THROW(run(layer, op), Error);
    EXPECT_THAT(openmsa_last_error(), HasSubstr("total_k: expected at most the plan's max_total_k = 109, got 110"));
  }
  EXPECT_NO_THROW(run(layer, kSparse)) << "forward has no such bound";
}

/// A device's workspace is sized for them, said or not. The check needs no device.
TEST(CallRefusals, TotalKeysOfTrainingAreAlwaysBoundedOnADevice) {
  Layer layer = make_layer({.dtype = OPENMSA_BFLOAT16, .seqlens_q = {40, 2}, .seqlens_k = {40, 70}});
  layer.add(run(layer, kMsa));
  layer.config.max_total_k = 0;
  const TensorMap outputs = poisoned_outputs(layer, kKl);
  const Tensors tensors = gather(layer, kKl, outputs);
  for (const auto& [longest, expected] : {std::pair{70, "max_total_k = 70, got 110"}, std::pair{110, ""}}) {
    layer.config.max_seqlen_k = longest;
    const core::Plan plan = core::make_plan(layer.on(OPENMSA_BACKEND_CUDA).config, 1);
    std::string refusal;
    try {
      api::check(plan, kKl, tensors);
    } catch (const core::Failure& failure) {
      refusal = failure.what();
    }
    EXPECT_TRUE(refusal.ends_with(expected) && refusal.empty() == (longest == 110)) << refusal;
  }
}

TEST(CallRefusals, UnknownOperationsAndMissingStructs) {
  const Layer layer = make_layer({});
  const Plan plan(layer.config);
  const Tensors tensors = openmsa::tensors();
  EXPECT_EQ(openmsa_run(plan.get(), static_cast<openmsa_op>(15), &tensors, {}), OPENMSA_INVALID_ARGUMENT);
  EXPECT_THAT(openmsa_last_error(), HasSubstr("got 15"));
  EXPECT_EQ(openmsa_run(nullptr, kMsa, &tensors, {}), OPENMSA_INVALID_ARGUMENT);
  EXPECT_THAT(openmsa_last_error(), HasSubstr("plan: expected"));
  EXPECT_EQ(openmsa_run(plan.get(), kMsa, nullptr, {}), OPENMSA_INVALID_ARGUMENT);
  EXPECT_THAT(openmsa_last_error(), HasSubstr("tensors: expected"));
  std::size_t bytes = 0;
  EXPECT_EQ(openmsa_plan_workspace_bytes(plan.get(), OPENMSA_OP_COUNT, &bytes), OPENMSA_INVALID_ARGUMENT);
}

TEST(CallRefusals, NewTokensMustFitTheirSequence) {
  Layer layer = make_layer({.page_size = 16, .seqlens_q = {5}, .seqlens_k = {5}});
  TensorMap caches = {{"k_cache", layer.tensors.at("k_cache")},
                      {"v_cache", layer.tensors.at("v_cache")},
                      {"index_k_cache", layer.tensors.at("index_k_cache")}};
  const TensorMap before = caches;
  layer.tensors["seqlens_k"] = int_buffer({4});
  EXPECT_THROW(run_into(layer, OPENMSA_OP_APPEND_KV, caches), Error);
  EXPECT_THAT(openmsa_last_error(), HasSubstr("seqlens_k: expected at least the 5 new tokens"));
  expect_same_bits(caches, before);
}

TEST(CallRefusals, NewIndexKeysAndTheirCacheComeTogether) {
  const Layer layer = make_layer({.page_size = 16, .seqlens_q = {5}, .seqlens_k = {5}});
  TensorMap caches = {{"k_cache", layer.tensors.at("k_cache")}, {"v_cache", layer.tensors.at("v_cache")}};
  EXPECT_THROW(run_into(layer, OPENMSA_OP_APPEND_KV, caches), Error);
  EXPECT_THAT(openmsa_last_error(), HasSubstr("index_k_cache: required by openmsa_append_kv with index_k, got none"));

  Layer without = layer;
  without.tensors.erase("index_k");
  caches.emplace("index_k_cache", layer.tensors.at("index_k_cache"));
  EXPECT_THROW(run_into(without, OPENMSA_OP_APPEND_KV, caches), Error);
  EXPECT_THAT(openmsa_last_error(), HasSubstr("index_k: required by openmsa_append_kv with index_k_cache, got none"));
}

}  // namespace
}  // namespace openmsa::test
