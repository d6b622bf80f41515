// Prefix sums over the sequences of a batch that does not fit into the lanes of a warp. One CTA.
#pragma once

#include <cub/block/block_scan.cuh>

#include "cuda/common/grid_dependency.cuh"
#include "cuda/sm90/decode/params.h"
#include "cuda/sm90/decode/split.h"

namespace openmsa::cuda::sm90::decode {

inline constexpr int kIndexThreads = 512;

struct IndexSums {
  std::int32_t units, groups;

  __device__ __forceinline__ friend IndexSums operator+(const IndexSums& a, const IndexSums& b) {
    return {a.units + b.units, a.groups + b.groups};
  }
};

__global__ void __launch_bounds__(kIndexThreads) index_sequences_kernel(const __grid_constant__ SelectParams p) {
  using Scan = cub::BlockScan<IndexSums, kIndexThreads>;
  __shared__ typename Scan::TempStorage storage;
  wait_for_earlier_kernels();
  let_next_kernel_start();
  IndexSums before{0, 0};
  for (std::int32_t first = 0; first <= p.batch.batch; first += kIndexThreads) {
    const auto sequence = static_cast<std::int32_t>(first + threadIdx.x);
    IndexSums mine{0, 0}, sums, all;
    if (sequence < p.batch.batch) {
      const SequenceView view = p.batch.sequence(sequence);
      const SequenceWork work = sequence_work(view, p.served, p.rules, p.tile_queries);
      mine = {work.units(), query_groups(view, p.served, p.group_queries)};
    }
    Scan(storage).ExclusiveScan(
        mine, sums, IndexSums{0, 0}, [](IndexSums a, IndexSums b) { return a + b; }, all);
    if (sequence <= p.batch.batch) {
      p.index.units[sequence] = before.units + sums.units;
      p.index.groups[sequence] = before.groups + sums.groups;
    }
    before = before + all;
    __syncthreads();
  }
}

}  // namespace openmsa::cuda::sm90::decode
