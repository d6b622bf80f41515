// Calls with fp8 keys or scales that contradict the plan or themselves.
#include "api/refusal.h"

namespace openmsa::test {
namespace {

constexpr openmsa_op kMsa = OPENMSA_OP_MSA_ATTENTION;
constexpr openmsa_op kAppend = OPENMSA_OP_APPEND_KV;
constexpr openmsa_op kDense = OPENMSA_OP_DENSE_ATTENTION;
constexpr openmsa_op kKl = OPENMSA_OP_KL_LOSS;

openmsa_tensor one_scale() {
  static float scale = 1;
  return openmsa::view(&scale, {1});
}

const std::vector<Refusal>& refusals() {
  static const std::vector<Refusal> kRefusals = {
      {"scale_without_fp8",
       kMsa,
       [](Call& c) { c.tensors.k_scale = one_scale(); },
       {"k_scale: not used by openmsa_msa_attention with this plan", "got a tensor"},
       OPENMSA_INVALID_ARGUMENT,
       16},
      {"index_scale_without_fp8",
       kMsa,
       [](Call& c) { c.tensors.index_k_scale = one_scale(); },
       {"index_k_scale: not used by openmsa_msa_attention with this plan", "got a tensor"}},
      {"append_scale_without_fp8",
       kAppend,
       [](Call& c) { c.tensors.v_scale = one_scale(); },
       {"v_scale: not used by openmsa_append_kv with this plan"},
       OPENMSA_INVALID_ARGUMENT,
       16},
      {"kv_scale_on_fp8_index_keys_alone",
       kMsa,
       [](Call& c) { c.tensors.v_scale = one_scale(); },
       {"v_scale: not used by openmsa_msa_attention with this plan"},
       OPENMSA_INVALID_ARGUMENT,
       0,
       true},
      {"index_scale_of_an_operation_without_index",
       kDense,
       [](Call& c) { c.tensors.index_k_scale = one_scale(); },
       {"index_k_scale: not used by openmsa_dense_attention"},
       OPENMSA_INVALID_ARGUMENT,
       16,
       true},
      {"value_scale_of_an_operation_without_values",
       OPENMSA_OP_SELECT_BLOCKS,
       [](Call& c) { c.tensors.v_scale = one_scale(); },
       {"v_scale: not used by openmsa_select_blocks"},
       OPENMSA_INVALID_ARGUMENT,
       16,
       true},
      {"cache_dtype_of_an_fp8_plan",
       kMsa,
       [](Call& c) { c.tensors.v_cache.dtype = OPENMSA_FLOAT32; },
       {"v_cache: expected dtype e4m3, got fp32"},
       OPENMSA_INVALID_ARGUMENT,
       16,
       true},
      {"index_cache_dtype_of_an_fp8_plan",
       kMsa,
       [](Call& c) { c.tensors.index_k_cache.dtype = OPENMSA_FLOAT32; },
       {"index_k_cache: expected dtype e4m3, got fp32"},
       OPENMSA_INVALID_ARGUMENT,
       16,
       true},
      {"cache_dtype_of_a_plain_plan",
       kMsa,
       [](Call& c) { c.tensors.k_cache.dtype = OPENMSA_FLOAT8_E4M3; },
       {"k_cache: expected dtype fp32, got e4m3"},
       OPENMSA_INVALID_ARGUMENT,
       16},
      {"query_dtype_of_an_fp8_plan",
       kMsa,
       [](Call& c) { c.tensors.index_q.dtype = OPENMSA_FLOAT8_E4M3; },
       {"index_q: expected dtype fp32, got e4m3"},
       OPENMSA_INVALID_ARGUMENT,
       16,
       true},
      {"index_k_dtype_of_an_fp8_plan",
       kMsa,
       [](Call& c) { c.tensors.index_k.dtype = OPENMSA_FLOAT32; },
       {"index_k: expected dtype e4m3, got fp32"},
       OPENMSA_INVALID_ARGUMENT,
       0,
       true},
      {"new_keys_in_fp8",
       kAppend,
       [](Call& c) { c.tensors.index_k.dtype = OPENMSA_FLOAT8_E4M3; },
       {"index_k: expected dtype fp32, got e4m3"},
       OPENMSA_INVALID_ARGUMENT,
       16,
       true},
      {"scale_dtype",
       kMsa,
       [](Call& c) { c.tensors.k_scale.dtype = OPENMSA_BFLOAT16; },
       {"k_scale: expected dtype fp32, got bf16"},
       OPENMSA_INVALID_ARGUMENT,
       16,
       true},
      {"scale_rank",
       kMsa,
       [](Call& c) { c.tensors.k_scale.rank = 3; },
       {"k_scale: expected rank 2 or [1], got 3"},
       OPENMSA_INVALID_ARGUMENT,
       16,
       true},
      {"scale_rank_1_of_many",
       kMsa,
       [](Call& c) { c.tensors.v_scale.rank = 1; },
       {"v_scale: expected rank 2 or [1], got 1"},
       OPENMSA_INVALID_ARGUMENT,
       16,
       true},
      {"scale_heads",
       kMsa,
       [](Call& c) { c.tensors.k_scale.shape[0] = 1; },
       {"k_scale: expected shape[0] = num_heads_kv = 2, got 1"},
       OPENMSA_INVALID_ARGUMENT,
       16,
       true},
      {"scale_tokens",
       kMsa,
       [](Call& c) { c.tensors.v_scale.shape[1] -= 1; },
       {"v_scale: expected [1] or shape[1] = num_pages * page_size of v_cache = 176, got 175"},
       OPENMSA_INVALID_ARGUMENT,
       16,
       true},
      {"index_scale_tokens",
       kMsa,
       [](Call& c) { c.tensors.index_k_scale.shape[0] += 1; },
       {"index_k_scale: expected [1] or shape[0] = num_pages * page_size of index_k_cache = 176, got 177"},
       OPENMSA_INVALID_ARGUMENT,
       16,
       true},
      {"index_scale_tokens_of_contiguous_keys",
       kMsa,
       [](Call& c) { c.tensors.index_k_scale.shape[0] = 2; },
       {"index_k_scale: expected [1] or shape[0] = total_k of index_k = 110, got 2"},
       OPENMSA_INVALID_ARGUMENT,
       0,
       true},
      {"scale_negative_stride",
       kMsa,
       [](Call& c) { c.tensors.k_scale.strides[1] = -1; },
       {"k_scale: expected strides[1] >= 0, got -1"},
       OPENMSA_INVALID_ARGUMENT,
       16,
       true},
      {"scale_null",
       kMsa,
       [](Call& c) { c.tensors.k_scale.data = nullptr; },
       {"k_scale: expected data, got NULL"},
       OPENMSA_INVALID_ARGUMENT,
       16,
       true},
      {"written_scales_that_overlap",
       kAppend,
       [](Call& c) { c.tensors.k_scale.strides[0] = 0; },
       {"k_scale: expected strides with which an output does not overlap itself"},
       OPENMSA_INVALID_ARGUMENT,
       16,
       true},
      {"written_scales_in_one_place",
       kAppend,
       [](Call& c) { c.tensors.v_scale.data = c.tensors.k_scale.data; },
       {"k_scale: expected memory of its own, got that of v_scale"},
       OPENMSA_INVALID_ARGUMENT,
       16,
       true},
      {"appended_index_scale_without_its_cache",
       kAppend,
       [](Call& c) { c.tensors.index_k = c.tensors.index_k_cache = {}; },
       {"index_k_cache: required by openmsa_append_kv with index_k_scale, got none"},
       OPENMSA_INVALID_ARGUMENT,
       16,
       true},
      {"kl_on_fp8_index_keys",
       kKl,
       [](Call&) {},
       {"index_dtype: openmsa_kl_loss", "the plan's dtype = fp32, got e4m3"},
       OPENMSA_UNSUPPORTED,
       0,
       true},
      {"fused_backward_on_fp8_index_keys",
       OPENMSA_OP_MSA_ATTENTION_BACKWARD,
       [](Call&) {},
       {"index_dtype: openmsa_msa_attention_backward", "the plan's dtype = fp32, got e4m3"},
       OPENMSA_UNSUPPORTED,
       0,
       true},
  };
  return kRefusals;
}

class Fp8Refusal : public testing::TestWithParam<Refusal> {};
INSTANTIATE_TEST_SUITE_P(Cases, Fp8Refusal, testing::ValuesIn(refusals()),
                         [](const auto& info) { return info.param.name; });

TEST_P(Fp8Refusal, NamesArgumentExpectedAndGotAndWritesNothing) { expect_refused(GetParam()); }

/// Each call that the cases spoil.
TEST(Fp8Calls, SucceedUnspoiled) {
  for (const std::int32_t page_size : {0, 16}) {
    for (const openmsa_op op : {kMsa, kDense, OPENMSA_OP_SELECT_BLOCKS, kAppend}) {
      if (op == kAppend && page_size == 0) continue;
      const Call call = valid_call(op, page_size, true);
      TensorMap outputs = call.outputs;
      EXPECT_NO_THROW(run_into(call.layer, op, outputs)) << openmsa_last_error();
    }
  }
}

/// Of queries in e4m3, and of their own dtype, under each rule.
TEST(Fp8Calls, AlonePlansThatCastTakeQueriesInFp8) {
  for (const auto rounding : {OPENMSA_INDEX_Q_SCALED, OPENMSA_INDEX_Q_CAST, OPENMSA_INDEX_Q_EXACT}) {
    Layer layer = make_layer({.index_dtype = OPENMSA_FLOAT8_E4M3, .index_q_rounding = rounding});
    TensorMap outputs = poisoned_outputs(layer, OPENMSA_OP_BLOCK_SCORES);
    const Plan plan(layer.config);
    const auto refusal_of = [&](openmsa_dtype dtype) -> std::string {
      layer.tensors["index_q"] = layer.tensors.at("index_q").as(dtype);
      const Tensors tensors = gather(layer, OPENMSA_OP_BLOCK_SCORES, outputs);
      const openmsa_status status = openmsa_check(plan.get(), OPENMSA_OP_BLOCK_SCORES, &tensors);
      EXPECT_TRUE(status == OPENMSA_SUCCESS || status == OPENMSA_INVALID_ARGUMENT);
      return status == OPENMSA_SUCCESS ? "" : openmsa_last_error();
    };
    const bool is_cast = rounding == OPENMSA_INDEX_Q_CAST;
    EXPECT_EQ(refusal_of(OPENMSA_FLOAT32), "");
    EXPECT_EQ(refusal_of(OPENMSA_FLOAT8_E4M3), is_cast ? "" : "index_q: expected dtype fp32, got e4m3");
    EXPECT_EQ(refusal_of(OPENMSA_BFLOAT16),
              is_cast ? "index_q: expected dtype fp32 or e4m3, got bf16" : "index_q: expected dtype fp32, got bf16");
  }
}

TEST(Fp8Calls, AScalePerBlockIsOneNumberPerPage) {
  Layer layer = make_layer({.page_size = 16, .index_dtype = OPENMSA_FLOAT8_E4M3, .scales = Scales::kPerBlock});
  const std::int64_t num_pages = layer.tensors.at("index_k_cache").shape()[0];
  const Plan plan(layer.config);
  for (const openmsa_op op : {OPENMSA_OP_MSA_ATTENTION, OPENMSA_OP_APPEND_KV}) {
    for (const std::int64_t count : {std::int64_t{1}, num_pages, 16 * num_pages}) {
      layer.tensors["index_k_scale"] = Buffer(OPENMSA_FLOAT32, {count});
      layer.tensors.at("index_k_scale").fill(1);
      TensorMap outputs = poisoned_outputs(layer, op);
      outputs.erase("index_k_scale");
      const Tensors tensors = gather(layer, op, outputs);
      const openmsa_status status = openmsa_check(plan.get(), op, &tensors);
      EXPECT_EQ(status, count <= num_pages ? OPENMSA_SUCCESS : OPENMSA_INVALID_ARGUMENT);
      if (count <= num_pages) continue;
      EXPECT_EQ(openmsa_last_error(), "index_k_scale: expected [1] or shape[0] = num_pages of index_k_cache = " +
                                          std::to_string(num_pages) + ", got " + std::to_string(count));
    }
  }
}

/// K and V may share what is only read: one scale for both.
TEST(Fp8Calls, OneScaleMayServeKeysAndValues) {
  Layer layer = make_layer({.page_size = 16, .kv_dtype = OPENMSA_FLOAT8_E4M3, .scales = Scales::kOne});
  layer.tensors["v_scale"] = layer.tensors["k_scale"];
  for (const openmsa_op op : {OPENMSA_OP_DENSE_ATTENTION, OPENMSA_OP_APPEND_KV}) {
    TensorMap expected = poisoned_outputs(layer, op), outputs = expected;
    run_into(layer, op, expected);
    Tensors tensors = gather(layer, op, outputs);
    tensors.v_scale = tensors.k_scale;
    Workspace workspace;
    Plan(layer.config).run(op, tensors, workspace);
    expect_same_bits(outputs, expected);
  }
}

}  // namespace
}  // namespace openmsa::test
