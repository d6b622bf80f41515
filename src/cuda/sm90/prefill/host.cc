#include "cuda/sm90/prefill/host.h"

#include <algorithm>
#include <bit>

#include "cuda/common/call.h"
#include "cuda/common/tensor_map.h"
#include "cuda/generic/schedule/kernels.h"
#include "cuda/sm90/heuristics.h"
#include "cuda/sm90/prefill/select/variants.h"
#include "cuda/sm90/prefill/variants.h"
#include "cuda/sm90/prefill/workspace.h"

namespace openmsa::cuda::sm90::prefill {
namespace {

using core::Arena;
using core::Plan;
using core::present;
using core::Problem;

AttendMaps attend_maps(const Problem& problem, const ScheduleBatch& work, std::int32_t key_box_rows) {
  const openmsa_tensors& t = problem.tensors;
  const openmsa_config& config = problem.plan.config;
  const auto group = static_cast<std::int32_t>(problem.plan.group_size);
  return {query_map(problem, t.q),
          make_tensor_map(t.q.data, config.dtype, config.head_dim,
                          {{config.num_heads_q, t.q.strides[1], group},
                           {problem.total_q, t.q.strides[0], work.tile_queries / 2},
                           {1, 0, 1}}),
          key_map(problem, t.k, t.k_cache, true, key_box_rows, work.partial_o),
          key_map(problem, t.v, t.v_cache, true, key_box_rows, work.partial_o)};
}

/// The schedule batches of this call, of which `p.work` becomes the first. Returns how many there are.
std::int32_t cut_into_batches(const Problem& problem, AttendParams& p, int num_sms) {
  const std::int64_t tiles = max_tiles(problem.total_q, problem.batch, p.work.tile_queries);
  const std::int64_t query_bytes = problem.plan.group_size * problem.plan.config.head_dim * 2;
  p.work.max_tiles = tiles_on_all_sms(tiles, p.work.max_tiles, num_sms);
  p.work.batches_per_head = static_cast<std::int32_t>(core::ceil_div(tiles, p.work.max_tiles));
  p.work.most_passes = static_cast<std::int32_t>(
      schedule_batch_passes(p.work.max_tiles * p.work.tile_queries * query_bytes, generic::kMaxPasses));
  return problem.plan.config.num_heads_kv * p.work.batches_per_head;
}

/// `work` with partial results of its own, behind those of `row` others.
ScheduleBatch beside(ScheduleBatch work, std::int32_t row, const Plan& plan) {
  const std::int64_t rows = row * work.max_pairs() * plan.group_size;
  work.partial_o = static_cast<std::uint16_t*>(work.partial_o) + rows * plan.config.head_dim;
  work.partial_lse += rows;
  return work;
}

AttendParams attend_params(const Problem& problem, const AttendWorkspace& workspace) {
  const Plan& plan = problem.plan;
  AttendParams p{};
  p.batch = batch_view(problem);
  p.index = workspace.index;
  p.work = workspace.work;
  p.topk_indices = selection_view(problem.tensors.topk_indices);
  p.topk = plan.config.topk;
  p.shared_threshold = shared_threshold(p.work.tile_queries);
  p.log2_group_size = std::countr_zero(static_cast<std::uint64_t>(plan.group_size));
  p.key_box_rows = plan.is_paged() ? plan.config.page_size : plan.config.block_size;
  p.scale_log2 = scale_log2(plan);
  p.out = output_rows(problem.tensors);
  p.k_scale = token_scale(problem.tensors.k_scale);
  p.v_scale = token_scale(problem.tensors.v_scale);
  return p;
}

}  // namespace

void select(const Problem& problem, QueryRange served, Arena arena, Launch launch) {
  const Plan& plan = problem.plan;
  const openmsa_tensors& t = problem.tensors;
  const bool stores_scores = present(t.block_scores);
  const SelectWorkspace workspace(arena, plan, stores_scores ? kNoList : list_capacity(plan));

  SelectParams p{};
  p.batch = batch_view(problem);
  p.index = workspace.index;
  p.rules = selection_rules(plan);
  p.index_q = index_query_rows(problem);
  p.heads = plan.config.num_heads_kv;
  p.queries_per_tile = workspace.queries_per_tile;
  p.key_box_rows = plan.is_paged() ? plan.config.page_size : 128;
  p.index_k_scale = index_token_scale(problem);
  p.index_block_scale = index_block_scale(problem);
  // Where all sequences are served, their tokens alone may fill the device.
  const std::int64_t least_tiles =
      served == kAllSequences ? core::ceil_div(problem.total_q, workspace.queries_per_tile) : 1;
  p.most_splits = 2 * least_tiles > kSelectItems ? 1 : workspace.most_splits;
  p.longest = workspace.longest;
  p.partial_lists = workspace.partial_lists;
  if (stores_scores) {
    p.block_scores = score_view(t.block_scores);
    p.score_columns = static_cast<std::int32_t>(t.block_scores.shape[2]);
    p.index_scale = static_cast<float>(plan.index_scale);
  } else {
    p.topk_indices = selection_view(t.topk_indices);
    p.candidates = candidate_view(t.candidates);
  }
  const CUtensorMap index_k =
      key_map(problem, t.index_k, t.index_k_cache, false, p.key_box_rows, workspace.index.tiles);
  const auto tiles = max_tiles(problem.total_q, problem.batch, workspace.queries_per_tile);
  const SelectKey key{plan.config.dtype, plan.config.index_dtype, plan.config.index_dim, plan.config.block_size,
                      workspace.capacity};
  generic::index_served(p.batch, p.index, workspace.queries_per_tile, served, workspace.longest, launch);
  find_variant(kSelectVariants, key, "select")(p, index_k, static_cast<int>(tiles), launch);
}

/// One schedule batch after the other, or several beside each other; they are scheduled together.
void attend(const Problem& problem, QueryRange served, Arena arena, Launch launch) {
  const openmsa_config& config = problem.plan.config;
  const AttendWorkspace workspace(arena, problem.plan);
  AttendParams p = attend_params(problem, workspace);
  const std::int32_t batches = cut_into_batches(problem, p, launch.num_sms);
  const AttendMaps maps = attend_maps(problem, p.work, p.key_box_rows);
  AttendFunction* const attend_work = find_variant(
      kAttendVariants, {config.dtype, config.kv_dtype, config.head_dim, config.block_size}, "sparse_attention");

  const std::int32_t together = batches_together(p.work.max_tiles, workspace.partial_tiles, kBatchesTogether);
  generic::index_served(p.batch, p.index, p.work.tile_queries, served, nullptr, launch);
  generic::clear_lists(p, std::min(workspace.scheduled, batches), launch);
  for (std::int32_t first = 0; first < batches; first += workspace.scheduled) {
    AttendParams several = p;
    several.work.number = first;
    const std::int32_t count = std::min(workspace.scheduled, batches - first);
    generic::schedule(several, count, launch);
    for (std::int32_t i = 0; i < count; i += together) {
      AttendBatches batches_beside;
      const std::int32_t rows = std::min(together, count - i);
      for (std::int32_t row = 0; row < rows; ++row) {
        batches_beside.of[row] = several;
        batches_beside.of[row].work = beside(several.work.after(i + row), row, problem.plan);
      }
      attend_work(batches_beside, rows, maps, launch);
    }
  }
}

}  // namespace openmsa::cuda::sm90::prefill
