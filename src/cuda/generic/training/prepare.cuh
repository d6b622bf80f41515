// What the backward kernel needs to know of keys and rows beforehand. A row of head_dim channels is read by
// head_dim / 8 neighbouring lanes, 16 bytes each.
#pragma once

#include <cmath>

#include "cuda/common/grid_dependency.cuh"
#include "cuda/generic/training/channels.cuh"
#include "cuda/generic/training/maxima.cuh"

namespace openmsa::cuda::generic::training {

inline constexpr int kPrepareThreads = 256;
inline constexpr int kStatsRows = 4;  // of a thread, at once

/// A lane's channels of a row.
template <class Element>
__device__ __forceinline__ Channels<Element> channels_of(const QueryRows& rows, std::int64_t row, std::int64_t head,
                                                         int lane) {
  const auto* const channels = static_cast<const Element*>(rows.data) + row * rows.strides[0] + head * rows.strides[1];
  return reinterpret_cast<const Channels<Element>*>(channels)[lane];
}

/// in.bounds of the keys of a kv_block and KV head. CTAs [kv_blocks][num_heads_kv].
template <class Element>
__global__ void __launch_bounds__(kPrepareThreads)
    key_bounds_kernel(const BatchView batch, const std::int32_t* blocks, const KeyInputs in) {
  __shared__ float v_norm[kTileKeys], k_max[kTileKeys];
  wait_for_earlier_kernels();
  const BlockKeys keys(batch, blocks, blockIdx.x);
  const int head = blockIdx.y, lanes = in.head_dim / kLaneChannels, at_once = kPrepareThreads / lanes;
  const int channel = threadIdx.x % lanes * kLaneChannels;
  const auto* const k = static_cast<const Element*>(in.k.data) + head * in.k.strides[1] + channel;
  const auto* const v = static_cast<const Element*>(in.v.data) + head * in.v.strides[1] + channel;
#pragma unroll 4
  for (int first = 0; first < keys.count; first += at_once) {  // all lanes of a warp go round as often
    const int key = min(first + static_cast<int>(threadIdx.x) / lanes, keys.count - 1), row = keys.first + key;
    float x[kLaneChannels];
    load_channels(k + row * in.k.strides[0], x);
    k_max[key] = largest_finite(lanes, x);
    load_channels(v + row * in.v.strides[0], x);
    const float norm = norm_over(lanes, x);
    v_norm[key] = isfinite(norm) ? norm : 0;
  }
  __syncthreads();
  const int warp = threadIdx.x / 32;
  if (warp < 2) run_maxima(warp == 0 ? v_norm : k_max, keys.count, threadIdx.x % 32);
  __syncthreads();
  for (int key = threadIdx.x; key < keys.count; key += kPrepareThreads) {
    in.bounds[std::int64_t{keys.first + key} * in.num_heads_kv + head] = {v_norm[key], k_max[key]};
  }
}

/// p.stats.keys of the batch's rows; a warp each.
__global__ void __launch_bounds__(kPrepareThreads) row_bounds_kernel(const BackwardParams p, const SeenKeys in) {
  wait_for_earlier_kernels();
  const int lane = threadIdx.x % 32;
  const std::int64_t place = (std::int64_t{blockIdx.x} * kPrepareThreads + threadIdx.x) / 32;
  if (place >= std::int64_t{p.work.heads} * p.work.rows) return;
  const std::int32_t head = p.work.first_head + static_cast<std::int32_t>(place / p.work.rows);
  const std::int32_t row = p.work.first_row + static_cast<std::int32_t>(place % p.work.rows);
  const PlacedRow at(p.batch, row);
  KeyBounds seen{0, 0};
  for (int slot = lane; slot < in.visited.slots(at.position, p.batch.block_size); slot += 32) {
    const std::int32_t block = in.visited.block(head, row, at.position, slot, p.batch.block_size);
    if (block < 0) continue;
    const std::int64_t key = at.last_seen_key(block, p.batch.block_size);
    const KeyBounds bounds = in.bounds[key * in.num_heads_kv + head];
    seen = {fmaxf(seen.v_norm, bounds.v_norm), fmaxf(seen.k_max, bounds.k_max)};
  }
  seen = {max_over(32, seen.v_norm), max_over(32, seen.k_max)};
  if (lane == 0) p.stats.keys[place] = seen;
}

/// What is known of a (row, query head) beside its d_o and o.
struct RowFacts {
  bool sees_keys;
  float lse, d_lse;
  KeyBounds keys;

  __device__ __forceinline__ RowFacts(const BackwardParams& p, const RowInputs& in, int row, int head) {
    lse = in.lse.at(row, head);
    d_lse = in.d_lse.data == nullptr ? 0 : in.d_lse.at(row, head);
    sees_keys = p.batch.position_of_row(row) >= 0 && lse != -INFINITY;
    keys = p.stats.keys[p.work.place(head >> p.log2_group_size, row)];
  }
};

/// `delta`: d_o.o.
__device__ __forceinline__ void store_stats(const BackwardParams& p, int row, int head, const RowFacts& facts,
                                            float delta, float d_o_norm) {
  constexpr float kLeastBound = 0x1p-90f;  // far below gradients that matter; its reciprocal stays a number
  delta -= facts.d_lse;
  const float bound = (d_o_norm * facts.keys.v_norm + fabsf(delta)) * facts.keys.k_max;
  const bool gives_d_v = isfinite(facts.lse) && isfinite(d_o_norm);
  const float to_fixed = !gives_d_v ? NAN : isfinite(bound) ? 0x1p30f / fmaxf(bound, kLeastBound) : INFINITY;
  const int group_size = 1 << p.log2_group_size;
  const std::int64_t at = p.work.place(head >> p.log2_group_size, row) * group_size + (head & (group_size - 1));
  // One that sees nothing has p = 0 and d_q = 0.
  p.stats.lse2[at] = facts.sees_keys ? facts.lse * static_cast<float>(kLog2E) : INFINITY;
  p.stats.delta[at] = facts.sees_keys ? delta : 0;
  p.stats.to_fixed[at] = facts.sees_keys ? to_fixed : 1;
}

/// Statistics of the batch's rows. A lane has channels of kStatsRows (row, query head) at once, all of them on their way
/// from memory together; the first kStatsRows lanes of a row then finish one each. CTAs [rows * group_size][KV heads].
template <class Element, class Output>
__global__ void __launch_bounds__(kPrepareThreads) row_stats_kernel(const BackwardParams p, const RowInputs in) {
  wait_for_earlier_kernels();
  const int lanes = in.head_dim / kLaneChannels, lane = threadIdx.x % lanes, at_once = kPrepareThreads / lanes;
  const int rows = p.work.rows << p.log2_group_size, first_head = (p.work.first_head + blockIdx.y) << p.log2_group_size;
  const int first = blockIdx.x * at_once * kStatsRows + threadIdx.x / lanes;
  const auto row_of = [&](int entry) { return p.work.first_row + (entry >> p.log2_group_size); };
  const auto head_of = [&](int entry) { return first_head + (entry & ((1 << p.log2_group_size) - 1)); };

  Channels<Element> d_o[kStatsRows];
  Channels<Output> o[kStatsRows];
#pragma unroll
  for (int i = 0; i < kStatsRows; ++i) {
    const int from = min(first + i * at_once, rows - 1);
    d_o[i] = channels_of<Element>(in.d_o, row_of(from), head_of(from), lane);
    o[i] = channels_of<Output>(in.o, row_of(from), head_of(from), lane);
  }
  const int entry = first + min(lane, kStatsRows - 1) * at_once, row = row_of(min(entry, rows - 1)),
            head = head_of(entry);
  const RowFacts facts(p, in, row, head);
  float delta = 0, norm = 0;  // of the lane's own entry
#pragma unroll
  for (int i = 0; i < kStatsRows; ++i) {
    float x[kLaneChannels], product = 0;
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c) {
      x[c] = static_cast<float>(d_o[i].x[c]);
      product += x[c] * static_cast<float>(o[i].x[c]);
    }
    const float sum = sum_over(lanes, product), x_norm = norm_over(lanes, x);
    delta = lane == i ? sum : delta;
    norm = lane == i ? x_norm : norm;
  }
  if (lane < kStatsRows && entry < rows) store_stats(p, row, head, facts, delta, norm);
}

}  // namespace openmsa::cuda::generic::training
