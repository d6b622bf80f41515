#include <algorithm>

#include "cuda/common/launch.h"
#include "cuda/generic/schedule/index_batch.cuh"
#include "cuda/generic/schedule/kernels.h"
#include "cuda/generic/schedule/schedule.cuh"

namespace openmsa::cuda::generic {

void index_batch(const BatchView& batch, const BatchIndex& index, int queries_per_tile, Launch launch) {
  index_served(batch, index, queries_per_tile, kAllSequences, nullptr, launch);
}

void index_served(const BatchView& batch, const BatchIndex& index, int queries_per_tile, QueryRange served,
                  std::int32_t* longest, Launch launch) {
  cuda::launch("index_batch", index_batch_kernel, {{1}, kIndexBatchThreads, 0}, launch.stream, batch, index,
               queries_per_tile, served, longest);
}

void clear_lists(const ScheduleParams& p, int batches, Launch launch) {
  constexpr unsigned int kCtas = 32, kThreads = 256;
  cuda::launch("clear_lists", clear_lists_kernel, {{kCtas, static_cast<unsigned int>(batches)}, kThreads, 0},
               launch.stream, p);
}

void schedule(const ScheduleParams& p, int batches, Launch launch) {
  const int entries = p.work.tile_queries * p.topk;
  const auto tiles = static_cast<unsigned int>(p.work.max_tiles), count = static_cast<unsigned int>(batches);
  cuda::launch("split_pairs", split_pairs_kernel,
               {{tiles, count}, kSplitThreads, static_cast<std::size_t>(split_shared_bytes(entries))}, launch.stream,
               p);
  cuda::launch("make_items", make_items_kernel, {{count}, kItemThreads, 0}, launch.stream, p);
  constexpr unsigned int kThreads = 256;
  const unsigned int pairs = tiles * static_cast<unsigned int>(entries);
  cuda::launch("place_visits", place_visits_kernel, {{(pairs + kThreads - 1) / kThreads, count}, kThreads, 0},
               launch.stream, p);
}

}  // namespace openmsa::cuda::generic
