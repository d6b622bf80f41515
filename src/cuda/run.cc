// Host side of the CUDA backend: workspace, parameters and tensor maps of a call, and the order of its kernels. Calls
// with few query tokens per sequence go to decode.cc.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <iterator>

#include "core/error.h"
#include "core/layer_selection.h"
#include "cuda/append.h"
#include "cuda/call.h"
#include "cuda/common/error.h"
#include "cuda/common/tensor_map.h"
#include "cuda/cuda.h"
#include "cuda/decode.h"
#include "cuda/prefill_plan.h"
#include "cuda/sm90/launches.h"
#include "cuda/topk.h"
#include "cuda_variants.h"  // generated: kSelectVariants, kPrefillVariants

namespace openmsa::cuda {
namespace {

using core::Arena;
using core::fail;
using core::Plan;
using core::present;
using core::Problem;

/// The smallest compiled list that holds topk.
const sm90::SelectVariant& select_variant(const Plan& plan, bool stores_scores) {
  const openmsa_config& config = plan.config;
  const sm90::SelectVariant* best = nullptr;
  for (const sm90::SelectVariant& variant : kSelectVariants) {
    const bool serves = stores_scores ? variant.capacity == 0 : variant.capacity >= config.topk;
    if (variant.dtype != config.dtype || variant.cached != config.index_dtype || variant.dim != config.index_dim ||
        variant.block_size != config.block_size || !serves) {
      continue;
    }
    if (best == nullptr || variant.capacity < best->capacity) best = &variant;
  }
  if (best == nullptr) fail(OPENMSA_INTERNAL, "select: no kernel for this plan");
  return *best;
}

/// Index branch: topk_indices, or block_scores where they are wanted.
void run_select(const Problem& problem, Arena& arena, sm90::Launch launch) {
  const Plan& plan = problem.plan;
  const openmsa_tensors& t = problem.tensors;
  const sm90::SelectVariant& variant = select_variant(plan, present(t.block_scores));
  const SelectWorkspace workspace(arena, plan, variant.capacity);

  sm90::SelectParams p{};
  p.batch = batch_view(problem);
  p.index = workspace.index;
  p.rules = {plan.config.block_size, plan.config.topk, plan.config.num_init_blocks, plan.config.num_local_blocks};
  p.index_q = t.index_q.data;
  p.q_row_stride = t.index_q.strides[0];
  p.q_head_stride = t.index_q.strides[1];
  p.heads = plan.config.num_heads_kv;
  p.key_box_rows = plan.is_paged() ? plan.config.page_size : 128;
  p.index_k_scale = token_scale(t.index_k_scale);
  p.num_splits = workspace.num_splits;
  p.partial_keys = workspace.partial_keys;
  p.partial_blocks = workspace.partial_blocks;
  if (present(t.block_scores)) {
    p.block_scores = static_cast<float*>(t.block_scores.data);
    std::copy_n(t.block_scores.strides, 3, p.score_strides);
    p.score_columns = static_cast<std::int32_t>(t.block_scores.shape[2]);
    p.index_scale = static_cast<float>(plan.index_scale);
  } else {
    p.topk_indices = static_cast<std::int32_t*>(t.topk_indices.data);
    std::copy_n(t.topk_indices.strides, 3, p.topk_strides);
  }
  const CUtensorMap index_k =
      key_map(problem, t.index_k, t.index_k_cache, false, p.key_box_rows, workspace.index.tiles);
  const auto tiles = max_tiles(problem.total_q, problem.batch, workspace.queries_per_tile);
  sm90::index_batch(p.batch, p.index, workspace.queries_per_tile, launch);
  variant.function(p, index_k, static_cast<int>(tiles), launch);
}

sm90::PrefillFunction* prefill_function(const Plan& plan) {
  for (const sm90::PrefillVariant& variant : kPrefillVariants) {
    if (variant.dtype == plan.config.dtype && variant.dim == plan.config.head_dim &&
        variant.block_size == plan.config.block_size) {
      return variant.function;
    }
  }
  fail(OPENMSA_INTERNAL, "sparse_attention: no kernel for this plan");
}

/// q in boxes of one query: {channels of a half, 8 heads, halves, 8-head groups, tokens}, so that groups of 8 rows with
/// their halves follow one another; with fewer heads a box is one half of them.
CUtensorMap gathered_q_map(const Problem& problem) {
  const openmsa_tensor& q = problem.tensors.q;
  const openmsa_config& config = problem.plan.config;
  const auto group = static_cast<std::int32_t>(problem.plan.group_size);
  const std::int32_t halves = config.head_dim / kSwizzleChannels;
  return make_tensor_map(q.data, config.dtype, kSwizzleChannels,
                         {{std::min(config.num_heads_q, 8), q.strides[1], std::min(group, 8)},
                          {halves, kSwizzleChannels, group < 8 ? 1 : halves},
                          {core::ceil_div(config.num_heads_q, 8), 8 * q.strides[1], std::max(group / 8, 1)},
                          {problem.total_q, q.strides[0], 1}});
}

sm90::PrefillMaps prefill_maps(const Problem& problem, const sm90::Chunk& chunk, std::int32_t key_box_rows) {
  const openmsa_tensors& t = problem.tensors;
  const openmsa_config& config = problem.plan.config;
  const auto group = static_cast<std::int32_t>(problem.plan.group_size);
  return {gathered_q_map(problem),
          make_tensor_map(t.q.data, config.dtype, config.head_dim,
                          {{config.num_heads_q, t.q.strides[1], group},
                           {problem.total_q, t.q.strides[0], chunk.tile_queries / 2},
                           {1, 0, 1}}),
          key_map(problem, t.k, t.k_cache, true, key_box_rows, chunk.partial_o),
          key_map(problem, t.v, t.v_cache, true, key_box_rows, chunk.partial_o)};
}

/// Attention over topk_indices, chunk by chunk.
void run_attention(const Problem& problem, Arena& arena, sm90::Launch launch) {
  const Plan& plan = problem.plan;
  const openmsa_tensors& t = problem.tensors;
  const PrefillWorkspace workspace(arena, plan);
  sm90::PrefillFunction* const attend = prefill_function(plan);

  sm90::PrefillParams p{};
  p.batch = batch_view(problem);
  p.index = workspace.index;
  p.chunk = workspace.chunk;
  p.topk_indices = static_cast<const std::int32_t*>(t.topk_indices.data);
  std::copy_n(t.topk_indices.strides, 3, p.topk_strides);
  p.topk = plan.config.topk;
  // Three quarters of a tile's queries: below that, one pass over all rows costs more than gathering the few.
  p.union_threshold = std::max(2, p.chunk.tile_queries * 3 / 4);
  p.log2_group_size = std::countr_zero(static_cast<std::uint64_t>(plan.group_size));
  p.key_box_rows = plan.is_paged() ? plan.config.page_size : plan.config.block_size;
  p.scale_log2 = static_cast<float>(plan.softmax_scale * 1.4426950408889634);
  p.o = t.o.data;
  std::copy_n(t.o.strides, 2, p.o_strides);
  if (present(t.lse)) {
    p.lse = static_cast<float*>(t.lse.data);
    std::copy_n(t.lse.strides, 2, p.lse_strides);
  }

  const std::int64_t tiles = max_tiles(problem.total_q, problem.batch, p.chunk.tile_queries);
  if (tiles <= p.chunk.max_tiles) {
    p.chunk.max_tiles = static_cast<std::int32_t>(tiles);
  } else if (p.chunk.max_tiles > launch.num_sms) {  // every SM works on as many of a chunk's tiles
    p.chunk.max_tiles -= p.chunk.max_tiles % launch.num_sms;
  }
  p.chunk.chunks_per_head = static_cast<std::int32_t>(core::ceil_div(tiles, p.chunk.max_tiles));
  const std::int32_t chunks = plan.config.num_heads_kv * p.chunk.chunks_per_head;
  const sm90::PrefillMaps maps = prefill_maps(problem, p.chunk, p.key_box_rows);
  const std::int64_t lists = std::int64_t{p.chunk.max_lists} * workspace.scheduled;
  check(cudaMemsetAsync(p.chunk.list_counts, 0, sizeof(std::int32_t) * lists, launch.stream), "cudaMemsetAsync");
  sm90::index_batch(p.batch, p.index, p.chunk.tile_queries, launch);
  for (std::int32_t first = 0; first < chunks; first += workspace.scheduled) {
    sm90::PrefillParams batch = p;
    batch.chunk.number = first;
    const std::int32_t count = std::min(workspace.scheduled, chunks - first);
    sm90::schedule(batch, count, launch);
    for (std::int32_t i = 0; i < count; ++i) {
      sm90::PrefillParams one = batch;
      one.chunk = batch.chunk.after(i);
      attend(one, maps, launch);
    }
  }
}

void run_layer(const Problem& problem, Arena& arena, sm90::Launch launch) {
  if (is_decode(problem)) return run_decode_layer(problem, arena, launch);
  const openmsa_tensors tensors = core::with_selection(problem, arena);
  const Problem layer{problem.plan, tensors, problem.batch, problem.total_q};
  Arena select = arena, attend = arena;  // one after the other in the same memory
  run_select(layer, select, launch);
  if (attends_by_decode(problem)) return run_decode_attention(layer, launch);
  run_attention(layer, attend, launch);
}

[[noreturn]] void refuse(openmsa_op op) {
  fail(OPENMSA_UNSUPPORTED,
       "op: expected block_scores, topk, select_blocks, sparse_attention, msa_attention or append_kv on the CUDA "
       "backend, got openmsa_",
       openmsa_op_name(op));
}

}  // namespace

std::size_t workspace_bytes(openmsa_op op, const Plan& plan) {
  Arena arena;
  switch (op) {
    case OPENMSA_OP_BLOCK_SCORES:
      SelectWorkspace(arena, plan, 0);
      break;
    case OPENMSA_OP_SELECT_BLOCKS: {
      Arena prefill = arena;
      SelectWorkspace(prefill, plan, select_variant(plan, false).capacity);
      take_candidates(arena, plan);
      return std::max(prefill.used(), arena.used());
    }
    case OPENMSA_OP_SPARSE_ATTENTION:
      PrefillWorkspace(arena, plan);
      break;
    case OPENMSA_OP_MSA_ATTENTION: {
      Arena decode = arena;
      take_candidates(decode, plan);
      core::take_selection(plan, arena);
      Arena select = arena, attend = arena;
      SelectWorkspace(select, plan, select_variant(plan, false).capacity);
      PrefillWorkspace(attend, plan);
      return std::max({decode.used(), select.used(), attend.used()});
    }
    case OPENMSA_OP_TOPK:
    case OPENMSA_OP_APPEND_KV:
      break;  // work in place
    default:
      refuse(op);
  }
  return arena.used();
}

void run(openmsa_op op, const Problem& problem, const core::Execution& execution) {
  check_tensors(problem);
  if (problem.total_q == 0) return;
  Arena arena = execution.workspace;
  const sm90::Launch launch = launch_on(execution.stream);
  switch (op) {
    case OPENMSA_OP_BLOCK_SCORES:
      return run_select(problem, arena, launch);
    case OPENMSA_OP_SELECT_BLOCKS:
      return is_decode(problem) ? run_decode_select(problem, arena, launch) : run_select(problem, arena, launch);
    case OPENMSA_OP_APPEND_KV:
      return run_append(problem, launch);
    case OPENMSA_OP_TOPK:
      return run_topk(problem, batch_view(problem), launch);
    case OPENMSA_OP_SPARSE_ATTENTION:
      return attends_by_decode(problem) ? run_decode_attention(problem, launch) : run_attention(problem, arena, launch);
    case OPENMSA_OP_MSA_ATTENTION:
      return run_layer(problem, arena, launch);
    default:
      refuse(op);
  }
}

}  // namespace openmsa::cuda
