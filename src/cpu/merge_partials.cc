// Attention from its parts over different keys, shard by shard in ascending order.

#include <algorithm>
#include <cmath>

#include "cpu/columns.h"
#include "cpu/stages.h"
#include "cpu/work.h"

namespace openmsa::cpu {
namespace {

/// The sum of one query and head's parts: o is not yet divided by sum. A part with lse = -inf is none.
struct MergedRow {
  static constexpr std::int64_t kMaxDim = 256;
  float o[kMaxDim] = {};
  float max = -kInfinity;
  float sum = 0;
  bool is_empty = true;

  MergedRow(const Problem& problem, std::int64_t row, std::int64_t head) {
    const openmsa_tensor &partial_o = problem.tensors.partial_o, &partial_lse = problem.tensors.partial_lse;
    const auto lse = [&](std::int64_t shard) { return core::element<float>(partial_lse, shard, row, head); };
    for (std::int64_t shard = 0; shard < partial_lse.shape[0]; ++shard) max = std::max(max, lse(shard));
    for (std::int64_t shard = 0; shard < partial_lse.shape[0]; ++shard) {
      if (lse(shard) == -kInfinity) continue;
      add(partial_o.dtype, core::address(partial_o, shard, row, head), std::exp(lse(shard) - max), partial_o.shape[3]);
    }
  }

 private:
  void add(openmsa_dtype dtype, const std::byte* part, float weight, std::int64_t dim) {
    float weighted[kMaxDim];
    tile_ops().widen(dtype, part, weighted, dim, weight);
    for (std::int64_t c = 0; c < dim; ++c) o[c] += weighted[c];
    sum += weight;
    is_empty = false;
  }
};

void write_row(const Problem& problem, std::int64_t row, std::int64_t head) {
  const openmsa_tensors& tensors = problem.tensors;
  const MergedRow merged(problem, row, head);
  const float scale = merged.is_empty ? 0 : 1 / merged.sum;
  store_row(merged.o, scale, tensors.o.shape[2], tensors.o.dtype, core::address(tensors.o, row, head));
  if (core::present(tensors.lse)) {
    core::element<float>(tensors.lse, row, head) = merged.is_empty ? -kInfinity : merged.max + std::log(merged.sum);
  }
}

}  // namespace

void merge_partials(const Problem& problem, Arena&, const Loops& loops) {
  const std::int64_t heads = problem.plan.config.num_heads_q;
  loops.threads.for_each(problem.used_q(), [&](std::int64_t row, int) {
    for (std::int64_t head = 0; head < heads; ++head) write_row(problem, row, head);
  });
  write_query_padding(problem, problem.tensors.o, 0, 0);
  write_query_padding(problem, problem.tensors.lse, 0, -kInfinity);
}

}  // namespace openmsa::cpu
