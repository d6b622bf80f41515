// Before the steps: the largest magnitudes of a call, and what the kernels know of each row of a list batch.
#pragma once

#include <cmath>

#include "cuda/common/grid_dependency.cuh"
#include "cuda/common/math.h"
#include "cuda/generic/training/channels.cuh"
#include "cuda/generic/training/kl/params.h"
#include "cuda/generic/training/maxima.cuh"

namespace openmsa::cuda::generic::training::kl {

inline constexpr int kPrepareThreads = 256;

/// Bits of |x|; 0 where it is not finite.
__device__ __forceinline__ std::uint32_t magnitude(float x) { return isfinite(x) ? __float_as_uint(fabsf(x)) : 0; }

/// Query rows of all sequences.
__device__ __forceinline__ std::int32_t used_rows(const BatchView& batch) {
  return batch.cu_seqlens_q.data == nullptr ? batch.total_q : batch.cu_seqlens_q.at(batch.batch);
}

__device__ __forceinline__ float weight_of(const Params& p, std::int32_t row) {
  if (p.weights.data != nullptr) return p.weights.data[row * p.weights.stride];
  return 1 / (static_cast<float>(used_rows(p.batch)) * static_cast<float>(p.num_heads));
}

/// Largest |w|; every CTA takes some rows.
__global__ void __launch_bounds__(kPrepareThreads) max_weight_kernel(const Params p) {
  wait_for_earlier_kernels();
  std::uint32_t largest = 0;
  const int rows = p.weights.data == nullptr ? min(1, used_rows(p.batch)) : used_rows(p.batch);
  for (int row = blockIdx.x * kPrepareThreads + threadIdx.x; row < rows; row += gridDim.x * kPrepareThreads) {
    largest = max(largest, magnitude(weight_of(p, row)));
  }
  largest = __reduce_max_sync(kFullWarp, largest);
  if (threadIdx.x % 32 == 0 && largest > 0) atomicMax(p.maxima.weight, largest);
}

/// p.maxima.index_k; a CTA per kv_block.
template <class Element>
__global__ void __launch_bounds__(kPrepareThreads) max_index_keys_kernel(const Params p, const QueryRows index_k) {
  __shared__ float maxima[kTileKeys];
  wait_for_earlier_kernels();
  const BlockKeys keys(p.batch, p.index.blocks, blockIdx.x);
  const int lanes = p.index_dim / kLaneChannels, at_once = kPrepareThreads / lanes;
  const auto* const rows = static_cast<const Element*>(index_k.data) + threadIdx.x % lanes * kLaneChannels;
  for (int first = 0; first < keys.count; first += at_once) {  // all lanes of a warp go round as often
    const int key = min(first + static_cast<int>(threadIdx.x) / lanes, keys.count - 1);
    float x[kLaneChannels];
    load_channels(rows + (keys.first + key) * index_k.strides[0], x);
    maxima[key] = largest_finite(lanes, x);
  }
  __syncthreads();
  if (threadIdx.x < 32) run_maxima(maxima, keys.count, threadIdx.x);
  __syncthreads();
  for (int key = threadIdx.x; key < keys.count; key += kPrepareThreads) {
    p.maxima.index_k[keys.first + key] = maxima[key];
  }
}

/// Adds a partial log-sum-exp; max may be -inf.
__device__ __forceinline__ void merge(PartialLse& into, PartialLse x) {
  const float max = fmaxf(into.max, x.max), shift = max == -INFINITY ? 0 : max;
  into.sum = into.sum * exp2f(into.max - shift) + x.sum * exp2f(x.max - shift);
  into.max = max;
}

/// What a row's slots add up to: one for every kv_block that it visits. Lanes of a warp merge every 32nd, then each
/// other's.
struct MergedSlots {
  bool is_empty;  // the row visits nothing
  float lse2;
  float max_index_k;  // of the keys that it sees

  __device__ __forceinline__ MergedSlots(const Params& p, std::int32_t head, std::int32_t row, int lane) {
    const PlacedRow at(p.batch, row);
    const VisitedBlocks visited{p.topk_indices, p.slots};
    const PartialLse* const partials = p.partials + p.work.place(head, row) * p.slots;
    PartialLse total{-INFINITY, 0};
    bool found = false;
    max_index_k = 0;
    for (int slot = lane; slot < visited.slots(at.position, p.batch.block_size); slot += 32) {
      const std::int32_t block = visited.block(head, row, at.position, slot, p.batch.block_size);
      if (block < 0) continue;
      merge(total, partials[slot]);
      max_index_k = fmaxf(max_index_k, p.maxima.index_k[at.last_seen_key(block, p.batch.block_size)]);
      found = true;
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      merge(total, {__shfl_xor_sync(kFullWarp, total.max, distance), __shfl_xor_sync(kFullWarp, total.sum, distance)});
    }
    is_empty = !__any_sync(kFullWarp, found);
    lse2 = total.max + log2f(total.sum);
    max_index_k = max_over(32, max_index_k);
  }
};

/// RowStats of the batch's rows; a warp each.
__global__ void __launch_bounds__(kPrepareThreads) row_stats_kernel(const Params p) {
  wait_for_earlier_kernels();
  const int lane = threadIdx.x % 32, group = 1 << p.log2_group_size;
  const std::int64_t place = (std::int64_t{blockIdx.x} * kPrepareThreads + threadIdx.x) / 32;
  if (place >= std::int64_t{p.work.heads} * p.work.rows) return;
  const std::int32_t head = p.work.first_head + static_cast<std::int32_t>(place / p.work.rows);
  const std::int32_t row = p.work.first_row + static_cast<std::int32_t>(place % p.work.rows);
  const MergedSlots student(p, head, row, lane);
  float teacher = 0;
  bool saw_nothing = student.is_empty;
  if (lane < group) teacher = p.lse.at(row, head * group + lane);
  saw_nothing |= __all_sync(kFullWarp, lane >= group || teacher == -INFINITY);
  const bool is_finite = __all_sync(kFullWarp, isfinite(teacher)) && isfinite(student.lse2);
  if (lane != 0) return;
  const float weight = saw_nothing ? 0 : weight_of(p, row);
  const float ratio = weight == 0 ? 0 : weight / __uint_as_float(*p.maxima.weight);
  p.stats[place] = {is_finite ? student.lse2 : NAN, ratio, fixed_bound(student.max_index_k)};
}

}  // namespace openmsa::cuda::generic::training::kl
