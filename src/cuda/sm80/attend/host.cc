#include "cuda/sm80/attend/host.h"

#include <algorithm>
#include <bit>

#include "cuda/common/call.h"
#include "cuda/generic/schedule/kernels.h"
#include "cuda/sm80/attend/variants.h"
#include "cuda/sm80/call.h"
#include "cuda/sm80/heuristics.h"

namespace openmsa::cuda::sm80::attend {
namespace {

using core::Arena;
using core::ceil_div;
using core::Plan;
using core::Problem;

BatchIndex take_index(Arena& arena, const Plan& plan) {
  return {arena.take<std::int32_t>(plan.config.max_batch + 2), arena.take<std::int32_t>(plan.config.max_batch + 1)};
}

/// Queries of a tile of a prompt.
std::int64_t tile_queries(const Plan& plan) {
  return std::min<std::int64_t>(kMaxTileQueries, kPromptRows / plan.group_size);
}

/// Prompts over a selection.
struct ScheduleWorkspace {
  ScheduleWorkspace(Arena& arena, const Plan& plan) : index(take_index(arena, plan)) {
    const openmsa_config& config = plan.config;
    const std::int64_t queries = tile_queries(plan);
    const std::int64_t row_bytes = config.topk * plan.group_size * (config.head_dim * 2 + 4);
    const std::int64_t all_tiles = max_tiles(config.max_total_q, config.max_batch, queries);
    const std::int64_t tiles = schedule_batch_tiles(row_bytes, queries, all_tiles);
    const std::int64_t pairs = tiles * queries * config.topk, blocks = config.max_batch * plan.max_blocks;
    const std::int64_t q_bytes = tiles * queries * plan.group_size * config.head_dim * 2;
    const std::int64_t passes = schedule_batch_passes(q_bytes, generic::kMaxPasses);
    const std::int64_t heads = std::min<std::int64_t>(config.num_heads_kv, kBatchesTogether);
    partial_tiles = schedule_batch_tiles(row_bytes, queries, all_tiles * heads);
    scheduled = static_cast<int>(batches_at_once(ceil_div(all_tiles, tiles) * config.num_heads_kv));

    work.max_tiles = static_cast<std::int32_t>(tiles);
    work.tile_queries = static_cast<std::int32_t>(queries);
    work.slots = config.topk;
    // More than one pass only where kv_blocks are few (ScheduleBatch::passes).
    work.max_lists =
        static_cast<std::int32_t>(std::max(blocks, std::min(passes * blocks, pairs / generic::kMinPassVisits)));
    work.max_items = static_cast<std::int32_t>(blocks + pairs / generic::kItemVisits + 1);
    work.shared = arena.take<SharedBlock>(scheduled * pairs);
    work.shared_counts = arena.take<std::int32_t>(scheduled * tiles);
    work.slot_counts = arena.take<std::int32_t>(scheduled * tiles * queries);
    work.pairs = arena.take<generic::KvOuterPair>(scheduled * pairs);
    work.visits = arena.take<Visit>(scheduled * pairs);
    work.items = arena.take<KvOuterItem>(scheduled * work.max_items);
    work.list_counts = arena.take<std::int32_t>(scheduled * work.max_lists);
    work.list_offsets = arena.take<std::int32_t>(scheduled * work.max_lists);
    work.num_items = arena.take<std::int32_t>(scheduled);
    const std::int64_t partial_rows = partial_tiles * queries * config.topk * plan.group_size;
    work.partial_o = arena.take<std::uint16_t>(partial_rows * config.head_dim);
    work.partial_lse = arena.take<float>(partial_rows);
  }

  BatchIndex index;
  ScheduleBatch work{};        // the first of those that are scheduled together; most_passes are for a call to say
  int scheduled;               // how many
  std::int64_t partial_tiles;  // whose partial results have room
};

/// Decode.
struct DecodeWorkspace {
  DecodeWorkspace(Arena& arena, const Plan& plan)
      : partial_o(arena.take<float>(kMostDecodeCtas * 16 * plan.config.head_dim)),
        partial_weight(arena.take<float2>(kMostDecodeCtas * 16)) {}

  float* partial_o;
  float2* partial_weight;
};

std::int32_t log2_group_size(const Plan& plan) { return std::countr_zero(static_cast<std::uint64_t>(plan.group_size)); }

AttentionTensors attention_tensors(const Problem& problem) {
  const openmsa_tensors& t = problem.tensors;
  return {query_rows(t.q),
          key_tensor(problem, t.k, t.k_cache, true),
          key_tensor(problem, t.v, t.v_cache, true),
          token_scale(t.k_scale),
          token_scale(t.v_scale),
          output_rows(t),
          scale_log2(problem.plan)};
}

const AttendFunctions& functions(const Plan& plan) {
  const openmsa_dtype cached = plan.has_fp8_kv() ? OPENMSA_FLOAT8_E4M3 : plan.config.dtype;
  return *find_variant(kAttendVariants, {plan.config.dtype, cached, plan.config.head_dim}, "attention");
}

PromptParams prompt_params(const Problem& problem, const BatchIndex& index) {
  const Plan& plan = problem.plan;
  PromptParams p{};
  p.batch = batch_view(problem);
  p.index = index;
  p.topk_indices = selection_view(problem.tensors.topk_indices);
  p.topk = plan.config.topk;
  p.log2_group_size = log2_group_size(plan);
  p.tensors = attention_tensors(problem);
  p.heads = plan.config.num_heads_kv;
  return p;
}

/// The schedule batches of this call, of which `p.work` becomes the first. Returns how many there are.
std::int32_t cut_into_batches(const Problem& problem, PromptParams& p) {
  const std::int64_t tiles = max_tiles(problem.total_q, problem.batch, p.work.tile_queries);
  const std::int64_t query_bytes = problem.plan.group_size * problem.plan.config.head_dim * 2;
  p.work.max_tiles = static_cast<std::int32_t>(std::min<std::int64_t>(tiles, p.work.max_tiles));
  p.work.batches_per_head = static_cast<std::int32_t>(ceil_div(tiles, p.work.max_tiles));
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

/// One schedule batch after the other, or several beside each other; they are scheduled together.
void attend_prompts(const Problem& problem, QueryRange served, Arena arena, Launch launch) {
  const ScheduleWorkspace workspace(arena, problem.plan);
  PromptParams p = prompt_params(problem, workspace.index);
  p.work = workspace.work;
  p.shared_threshold = shared_threshold(p.work.tile_queries);
  const std::int32_t batches = cut_into_batches(problem, p);
  const std::int32_t together = batches_together(p.work.max_tiles, workspace.partial_tiles, kBatchesTogether);
  generic::index_served(p.batch, p.index, p.work.tile_queries, served, nullptr, launch);
  generic::clear_lists(p, std::min(workspace.scheduled, batches), launch);
  for (std::int32_t first = 0; first < batches; first += workspace.scheduled) {
    PromptParams several = p;
    several.work.number = first;
    const std::int32_t count = std::min(workspace.scheduled, batches - first);
    generic::schedule(several, count, launch);
    for (std::int32_t i = 0; i < count; i += together) {
      PromptBatches beside_each_other;
      const std::int32_t rows = std::min(together, count - i);
      for (std::int32_t row = 0; row < rows; ++row) {
        beside_each_other.of[row] = several;
        beside_each_other.of[row].work = beside(several.work.after(i + row), row, problem.plan);
      }
      functions(problem.plan).scheduled(beside_each_other, rows, launch);
    }
  }
}

void attend_decode(const Problem& problem, QueryRange served, bool is_dense, Arena arena, Launch launch) {
  const Plan& plan = problem.plan;
  const DecodeWorkspace workspace(arena, plan);
  DecodeParams p{};
  p.batch = batch_view(problem);
  p.served = served;
  p.tensors = attention_tensors(problem);
  p.topk_indices = selection_view(problem.tensors.topk_indices);
  p.topk = is_dense ? 0 : plan.config.topk;
  p.heads = plan.config.num_heads_kv;
  p.log2_group_size = log2_group_size(plan);
  // Of the rows of a mixture most are not decode's: they have no parts.
  p.splits = served.is_open() ? decode_splits(problem.total_q * p.heads, launch.num_sms, is_dense) : 1;
  p.partial_o = workspace.partial_o;
  p.partial_weight = workspace.partial_weight;
  functions(plan).decode(p, launch);
}

}  // namespace

std::size_t sparse_attention_bytes(const Plan& plan) {
  Arena prompts, decode;
  ScheduleWorkspace(prompts, plan);
  DecodeWorkspace(decode, plan);
  return std::max(prompts.used(), decode.used());
}

std::size_t dense_attention_bytes(const Plan& plan) {
  Arena prompts, decode;
  take_index(prompts, plan);
  DecodeWorkspace(decode, plan);
  return std::max(prompts.used(), decode.used());
}

void sparse_attention(const Problem& problem, Arena arena, Launch launch) {
  const Route served = route({problem.total_q, problem.batch});
  if (!served.decode.is_empty()) attend_decode(problem, served.decode, false, arena, launch);
  if (!served.prefill.is_empty()) attend_prompts(problem, served.prefill, arena, launch);
}

void dense_attention(const Problem& problem, Arena arena, Launch launch) {
  if (dense_is_decode({problem.total_q, problem.batch})) {
    return attend_decode(problem, kAllSequences, true, arena, launch);
  }
  PromptParams p = prompt_params(problem, take_index(arena, problem.plan));
  p.is_dense = true;
  p.topk = 0;
  p.work.tile_queries = static_cast<std::int32_t>(kPromptRows / problem.plan.group_size);
  generic::index_batch(p.batch, p.index, p.work.tile_queries, launch);
  const std::int64_t tiles = max_tiles(problem.total_q, problem.batch, p.work.tile_queries);
  functions(problem.plan).dense(p, tiles, launch);
}

}  // namespace openmsa::cuda::sm80::attend
