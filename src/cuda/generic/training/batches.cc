#include "cuda/generic/training/batches.h"

#include "cuda/generic/lists/list.h"
#include "cuda/generic/schedule/kernels.h"
#include "cuda/generic/training/call.h"

namespace openmsa::cuda::generic::training {
namespace {

using core::Arena;
using core::Plan;

std::int64_t topk_of(const Plan& plan, bool is_dense) { return is_dense ? 0 : plan.config.topk; }

/// Of a row and KV head in the lists: bits, visits and items.
std::int64_t list_bytes(const Plan& plan, std::int64_t topk) {
  return topk == 0 ? 0 : plan.max_blocks / 8 + 1 + topk * (4 + 1);
}

generic::ListCapacity list_capacity(const Plan& plan, bool is_dense, std::int64_t heads, std::int64_t rows) {
  const openmsa_config& config = plan.config;
  const std::int64_t blocks = std::min(generic::most_blocks(plan.max_total_k, config.max_batch, config.block_size),
                                       config.max_batch * plan.max_blocks);
  const std::int64_t ranges = covering(rows, is_dense ? kDenseRangeRows : kLeastRangeRows);
  return {config.max_batch, heads, rows * heads, ranges, topk_of(plan, is_dense), plan.max_blocks, blocks};
}

}  // namespace

ListBatches::ListBatches(Arena& arena, const Plan& plan, bool is_dense, const BatchCosts& costs) {
  const openmsa_config& config = plan.config;
  const std::int64_t topk = topk_of(plan, is_dense), place_bytes = costs.place_bytes + list_bytes(plan, topk);
  const std::int64_t key_bytes = plan.max_total_k * costs.key_bytes;
  heads = static_cast<std::int32_t>(
      backward_heads(config.num_heads_kv, config.max_total_q,
                     std::min<std::int64_t>(generic::kMaxListRows, kBackwardBytes / 2 / place_bytes), key_bytes));
  const std::int64_t left = kBackwardBytes - heads * key_bytes;
  const std::int64_t most = std::min<std::int64_t>(generic::kMaxListRows, heads * config.max_total_q);
  const std::int64_t least = std::min(costs.least_places, most);
  max_rows = static_cast<std::int32_t>(std::max<std::int64_t>(std::clamp(left / place_bytes, least, most) / heads, 1));

  const generic::ListCapacity capacity = list_capacity(plan, is_dense, heads, max_rows);
  const std::int64_t parts = capacity.ranges * heads * capacity.total_blocks;
  items = is_dense ? parts : generic::ListItems::max_items(places() * topk, parts);
  words = generic::list_words(capacity);
  lists = generic::take_lists(arena, capacity);
}

generic::ListParams begin_lists(const core::Problem& problem, const ListBatches& batches, Launch launch) {
  generic::ListParams lists = batches.lists;
  lists.batch = batch_view(problem);
  lists.topk_indices = selection_view(problem.tensors.topk_indices);
  const std::int64_t blocks = generic::most_blocks(lists.batch.total_k, lists.batch.batch, lists.batch.block_size);
  lists.max_lists = std::min(lists.max_lists, blocks);
  const bool is_dense = !core::present(problem.tensors.topk_indices);
  lists.range_rows = static_cast<std::int32_t>(
      is_dense ? kDenseRangeRows : list_range_rows(blocks, problem.plan.config.topk, generic::kMaxListRows));
  set_zero(lists.bits, batches.words, launch);
  generic::index_batch(lists.batch, lists.index, lists.batch.block_size, launch);
  return lists;
}

}  // namespace openmsa::cuda::generic::training
