#include "cuda/common/call.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "cuda/common/error.h"
#include "cuda/common/math.h"
#include "cuda/common/tensor_map.h"

namespace openmsa::cuda {
namespace {

using core::fail;
using core::present;
using core::Problem;

/// The copy engine and 16-byte accesses want aligned rows.
void require_aligned_rows(const char* name, const openmsa_tensor& tensor) {
  if (!present(tensor) || has_aligned_rows(tensor)) return;
  fail(OPENMSA_UNSUPPORTED, name, ": expected 16-byte aligned rows on the CUDA backend, got data ", tensor.data,
       " with strides ", tensor.strides[0], ", ", tensor.strides[1]);
}

void require_plan_dtype(const char* name, const openmsa_tensor& tensor, const core::Plan& plan) {
  if (!present(tensor) || tensor.dtype == plan.config.dtype) return;
  fail(OPENMSA_UNSUPPORTED, name, ": expected the plan's dtype on the CUDA backend, got fp32");
}

Shard shard_of(const core::Plan& plan) { return {plan.config.shard_count, plan.config.shard_rank}; }

IntVector int_vector(const openmsa_tensor& tensor) {
  if (!present(tensor)) return {nullptr, 0};
  return {static_cast<const std::int32_t*>(tensor.data), tensor.strides[0]};
}

}  // namespace

bool has_aligned_rows(const openmsa_tensor& tensor) {
  const auto bytes = static_cast<std::int64_t>(openmsa_dtype_bytes(tensor.dtype));
  bool is_aligned = reinterpret_cast<std::uintptr_t>(tensor.data) % 16 == 0;
  for (int d = 0; d + 1 < tensor.rank; ++d) is_aligned &= tensor.shape[d] <= 1 || tensor.strides[d] % (16 / bytes) == 0;
  return is_aligned;
}

void check_tensors(const Problem& problem, bool may_write_fp32) {
  const openmsa_tensors& t = problem.tensors;
  const std::pair<const char*, const openmsa_tensor*> rows[] = {{"q", &t.q},
                                                                {"k", &t.k},
                                                                {"v", &t.v},
                                                                {"index_q", &t.index_q},
                                                                {"index_k", &t.index_k},
                                                                {"k_cache", &t.k_cache},
                                                                {"v_cache", &t.v_cache},
                                                                {"index_k_cache", &t.index_k_cache},
                                                                {"o", &t.o},
                                                                {"partial_o", &t.partial_o},
                                                                {"d_o", &t.d_o}};
  for (const auto& [name, tensor] : rows) require_aligned_rows(name, *tensor);
  const bool reads_o = present(t.d_o);  // a gradient takes it in fp32 too
  if (!reads_o && !may_write_fp32) require_plan_dtype("o", t.o, problem.plan);
  require_plan_dtype("d_o", t.d_o, problem.plan);
}

BatchView batch_view(const Problem& problem) {
  const openmsa_tensors& t = problem.tensors;
  BatchView view{};
  view.batch = static_cast<std::int32_t>(problem.batch);
  view.total_q = static_cast<std::int32_t>(problem.total_q);
  view.total_k = static_cast<std::int32_t>((present(t.k) ? t.k : t.index_k).shape[0]);
  view.cu_seqlens_q = int_vector(t.cu_seqlens_q);
  view.cu_seqlens_k = int_vector(t.cu_seqlens_k);
  view.seqlens_k = int_vector(t.seqlens_k);
  if (present(t.block_table)) {
    view.block_table = {static_cast<const std::int32_t*>(t.block_table.data), t.block_table.strides[1]};
    view.table_row = t.block_table.strides[0];
  }
  view.page_size = problem.plan.config.page_size;
  view.block_size = problem.plan.config.block_size;
  view.shard = shard_of(problem.plan);
  return view;
}

CUtensorMap key_map(const Problem& problem, const openmsa_tensor& contiguous, const openmsa_tensor& paged,
                    bool has_heads, std::int32_t box_rows, const void* stand_in) {
  const bool is_paged = problem.plan.is_paged();
  const openmsa_tensor& tensor = is_paged ? paged : contiguous;
  const int token = is_paged ? 1 : 0, last = tensor.rank - 1;
  const std::int64_t heads = has_heads ? tensor.shape[token + 1] : 1, tokens = tensor.shape[token];
  const std::int64_t pages = is_paged ? tensor.shape[0] : 1;
  const bool is_empty = heads * tokens * pages == 0;  // nothing will be loaded
  return make_tensor_map(is_empty ? stand_in : tensor.data, tensor.dtype, tensor.shape[last],
                         {{heads, has_heads ? tensor.strides[token + 1] : 0, 1},
                          {tokens, tensor.strides[token], box_rows},
                          {pages, is_paged ? tensor.strides[0] : 0, 1}});
}

CUtensorMap query_map(const Problem& problem, const openmsa_tensor& rows) {
  const openmsa_config& config = problem.plan.config;
  const auto group = static_cast<std::int32_t>(problem.plan.group_size);
  const std::int32_t halves = config.head_dim / kSwizzleChannels;
  return make_tensor_map(rows.data, config.dtype, kSwizzleChannels,
                         {{std::min(config.num_heads_q, 8), rows.strides[1], std::min(group, 8)},
                          {halves, kSwizzleChannels, group < 8 ? 1 : halves},
                          {core::ceil_div(config.num_heads_q, 8), 8 * rows.strides[1], std::max(group / 8, 1)},
                          {problem.total_q, rows.strides[0], 1}});
}

TokenScale token_scale(const openmsa_tensor& scale) {
  if (!present(scale)) return {nullptr, 0, 0};
  const auto* const data = static_cast<const float*>(scale.data);
  if (core::is_one_scale(scale)) return {data, 0, 0};
  return {data, scale.rank == 2 ? scale.strides[0] : 0, scale.strides[scale.rank - 1]};
}

TokenScale index_token_scale(const Problem& problem) {
  if (index_block_scale(problem).exists()) return {nullptr, 0, 0};
  return token_scale(problem.tensors.index_k_scale);
}

BlockScale index_block_scale(const Problem& problem) {
  const openmsa_tensor& scale = problem.tensors.index_k_scale;
  if (!problem.plan.has_block_scales() || !present(scale) || core::is_one_scale(scale)) return {nullptr, 0};
  return {static_cast<const float*>(scale.data), scale.strides[0]};
}

SelectionRules selection_rules(const core::Plan& plan) {
  return {plan.config.block_size, plan.config.topk, plan.config.num_init_blocks, plan.config.num_local_blocks,
          shard_of(plan)};
}

SelectionView selection_view(const openmsa_tensor& topk_indices) {
  if (!present(topk_indices)) return {};
  const std::int64_t* const strides = topk_indices.strides;
  return {static_cast<std::int32_t*>(topk_indices.data), {strides[0], strides[1], strides[2]}};
}

CandidateView candidate_view(const openmsa_tensor& candidates) {
  if (!present(candidates)) return {};
  const std::int64_t* const strides = candidates.strides;
  return {static_cast<Ranked*>(candidates.data), {strides[0], strides[1], strides[2]}};
}

ScoreView score_view(const openmsa_tensor& block_scores) {
  if (!present(block_scores)) return {};
  const std::int64_t* const strides = block_scores.strides;
  return {static_cast<float*>(block_scores.data), {strides[0], strides[1], strides[2]}};
}

QueryRows query_rows(const openmsa_tensor& q) { return {q.data, {q.strides[0], q.strides[1]}}; }

IndexQueryRows index_query_rows(const Problem& problem) {
  const openmsa_tensor& q = problem.tensors.index_q;
  return {q.data, {q.strides[0], q.strides[1]}, problem.plan.config.index_q_rounding, q.dtype == OPENMSA_FLOAT8_E4M3};
}

OutputRows output_rows(const openmsa_tensors& tensors) {
  OutputRows rows{
      tensors.o.data, {tensors.o.strides[0], tensors.o.strides[1]}, nullptr, {}, tensors.o.dtype == OPENMSA_FLOAT32};
  if (present(tensors.lse)) {
    rows.lse = static_cast<float*>(tensors.lse.data);
    std::copy_n(tensors.lse.strides, 2, rows.lse_strides);
  }
  return rows;
}

float scale_log2(const core::Plan& plan) { return static_cast<float>(plan.softmax_scale * kLog2E); }

Launch launch_on(void* stream) {
  int device = 0, num_sms = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  return {static_cast<cudaStream_t>(stream), num_sms};
}

}  // namespace openmsa::cuda
