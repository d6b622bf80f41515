// Before the steps: the largest magnitudes of a call, and what the kernels know of each row of a list batch.
#pragma once

#include <cmath>

#include "cuda/common/grid_dependency.cuh"
#include "cuda/common/math.h"
#include "cuda/sm90/ptx/math.cuh"
#include "cuda/sm90/training/channels.cuh"
#include "cuda/sm90/training/kl/params.h"

namespace openmsa::cuda::sm90::training::kl {

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

/// Largest magnitude of the index keys of each kv_block; a CTA each.
template <class Element>
__global__ void __launch_bounds__(kPrepareThreads) max_index_key_kernel(const Params p, const QueryRows index_k) {
  __shared__ std::uint32_t maximum;
  if (threadIdx.x == 0) maximum = 0;
  wait_for_earlier_kernels();
  const int block = blockIdx.x, lanes = p.index_dim / kLaneChannels;  // lanes of a key
  if (block >= p.index.blocks[p.batch.batch]) return;
  const std::int32_t sequence = find_sequence({p.index.blocks, 1}, p.batch.batch, block);
  const SequenceView view = p.batch.sequence(sequence);
  const int first = (block - p.index.blocks[sequence]) * p.batch.block_size;
  const int keys = min(p.batch.block_size, view.seqlen_k - first), channel = threadIdx.x % lanes * kLaneChannels;
  const auto* const rows = static_cast<const Element*>(index_k.data) + channel;
  std::uint32_t largest = 0;
  for (int key = threadIdx.x / lanes; key < keys; key += kPrepareThreads / lanes) {
    float x[kLaneChannels];
    load_channels(rows + (view.k_row + first + key) * index_k.strides[0], x);
#pragma unroll
    for (const float value : x) largest = max(largest, magnitude(value));
  }
  largest = __reduce_max_sync(kFullWarp, largest);
  __syncthreads();
  if (threadIdx.x % 32 == 0) atomicMax(&maximum, largest);
  __syncthreads();
  if (threadIdx.x == 0) p.maxima.index_k[block] = maximum;
}

/// Adds a partial log-sum-exp; max may be -inf.
__device__ __forceinline__ void merge(PartialLse& into, PartialLse x) {
  const float max = fmaxf(into.max, x.max), shift = max == -INFINITY ? 0 : max;
  into.sum = into.sum * exp2_approx(into.max - shift) + x.sum * exp2_approx(x.max - shift);
  into.max = max;
}

/// The kv_block of a slot that holds a partial result of the row, as it does for every kv_block whose first key the row
/// sees; -1: the slot holds none.
__device__ __forceinline__ std::int32_t block_of_slot(const Params& p, std::int32_t head, std::int32_t row,
                                                      std::int32_t position, int slot) {
  const bool is_selection = p.topk_indices.data != nullptr;
  const std::int32_t block = is_selection ? p.topk_indices.row(head, row)[slot * p.topk_indices.strides[2]] : slot;
  return std::int64_t{block} * p.batch.block_size <= position ? block : -1;
}

/// What a row's slots add up to. Lanes of a warp merge every 32nd slot, then each other's.
struct MergedSlots {
  bool is_empty;  // the row visits nothing
  float lse2;
  float max_index_k;  // of the kv_blocks

  __device__ __forceinline__ MergedSlots(const Params& p, std::int32_t head, std::int32_t row, int lane) {
    const IntVector begins = p.batch.cu_seqlens_q;
    const std::int32_t sequence = begins.data == nullptr ? 0 : find_sequence(begins, p.batch.batch + 1, row);
    const std::int32_t position = p.batch.position_in(sequence, row);
    const PartialLse* const partials = p.partials + p.work.place(head, row) * p.slots;
    PartialLse total{-INFINITY, 0};
    std::uint32_t largest = 0;
    bool found = false;
    for (int slot = lane; position >= 0 && slot < p.slots; slot += 32) {
      const std::int32_t block = block_of_slot(p, head, row, position, slot);
      if (block < 0) continue;
      merge(total, partials[slot]);
      largest = max(largest, p.maxima.index_k[p.index.blocks[sequence] + block]);
      found = true;
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      merge(total, {__shfl_xor_sync(kFullWarp, total.max, distance), __shfl_xor_sync(kFullWarp, total.sum, distance)});
    }
    is_empty = !__any_sync(kFullWarp, found);
    lse2 = total.max + log2f(total.sum);
    max_index_k = __uint_as_float(__reduce_max_sync(kFullWarp, largest));
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

}  // namespace openmsa::cuda::sm90::training::kl
