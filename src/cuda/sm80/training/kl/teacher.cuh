// The teacher's probabilities of every visit: each work item is a kv_block and the query rows of one KV head that visit
// it. Its keys are in registers, 16 for each warp; tiles of 32 rows, the query heads of 32 / group_size queries, stream
// past:
//
//   s^T[16 keys][32 rows] = k q^T
//   P  [16 keys][queries] = mean over a query's heads of exp2(s * scale_log2 - log2(e) lse), in fp16 to memory
#pragma once

#include "cuda/common/grid_dependency.cuh"
#include "cuda/sm80/heuristics.h"
#include "cuda/sm80/ptx/math.cuh"
#include "cuda/sm80/ptx/turn.cuh"
#include "cuda/sm80/training/params.h"
#include "cuda/sm80/training/rows.cuh"

namespace openmsa::cuda::sm80::training::kl {

using generic::training::kTeacherOne;
using generic::training::kl::Params;

template <class Element, int kDim>
struct TeacherConfig {
  using Tile = TrainingTile<Element, kDim>;
  static constexpr int kStages = 4;
  struct Stage {
    alignas(kTileAlignment) char q[kTileRows * Tile::kRowBytes];
    float lse[kTileRows];
  };
  struct Storage {
    Stage stages[kStages];
    std::int32_t next_item;
  };
  static_assert(sizeof(Storage) <= kSharedBytes);
};

/// Where a lane's two keys, `key` and the one 8 after it, lie in a visit (generic/training/teacher.h).
__device__ __forceinline__ int key_pair(int key) { return key / 16 * 16 + key % 8 * 2; }

/// Sums over the heads of each query, of one of a lane's keys: x[i], of columns 8 (i / 2) + 2 (lane % 4) + i % 2 of a tile.
/// Afterwards x[i] of column c is that of its query, c >> log2_heads, as a sum over 2^log2_heads columns.
__device__ __forceinline__ void sum_heads(float (&x)[kTileRows / 4], int log2_heads) {
#pragma unroll
  for (int i = 0; i < kTileRows / 4; i += 2) {
    if (log2_heads >= 1) x[i] = x[i + 1] = x[i] + x[i + 1];
    if (log2_heads >= 2) x[i] = x[i + 1] = x[i] + __shfl_xor_sync(kFullWarp, x[i], 1);
    if (log2_heads >= 3) x[i] = x[i + 1] = x[i] + __shfl_xor_sync(kFullWarp, x[i], 2);
  }
#pragma unroll
  for (int i = 0; i < kTileRows / 4; i += 4) {
    if (log2_heads >= 4) x[i] = x[i] + x[i + 2];
  }
}

template <class Config>
__device__ __forceinline__ void teacher_item(const Params& p, const TeacherTensors& t, const generic::ListItem& item,
                                             typename Config::Storage& storage) {
  using Tile = typename Config::Tile;
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int shift = p.log2_group_size, group = 1 << shift, capacity = kTileRows >> shift;
  const SequenceKeys keys = keys_of(p.batch, item);
  const auto load = [&](int tile) {
    typename Config::Stage& stage = storage.stages[tile % Config::kStages];
    if (tile * capacity < item.count) {
      RowCopies<Tile> copies;
      copies.find(p.work, item, tile * capacity, shift, thread);
      copies.copy(t.q, item.head << shift, shift, shared_address(stage.q), thread);
      if (thread < kTileRows) {
        const std::int32_t q_row = p.work.visited_row(item, tile * capacity + (thread >> shift));
        const float* const lse = p.lse.data + p.lse.place(max(q_row, 0), (item.head << shift) + (thread & (group - 1)));
        async_copy_4(shared_address(&stage.lse[thread]), lse, q_row >= 0);
      }
    }
    async_commit();
  };
#pragma unroll
  for (int i = 0; i < Config::kStages - 1; ++i) load(i);
  typename Tile::KeyOperand k;
  load_key_operand<Tile>(keys, t.k, item.head, item.block * p.batch.block_size + warp * kWarpKeys, k, lane);
  const std::int64_t stride = std::int64_t{p.teacher.stride()} * kTileKeys;
  std::uint16_t* const to =
      p.teacher.data + p.teacher.first_visit(p.work, item) * kTileKeys + key_pair(warp * kWarpKeys + lane / 4);
#pragma unroll 1
  for (int tile = 0; tile * capacity < item.count; ++tile) {
    async_wait<Config::kStages - 2>();
    __syncthreads();
    load(tile + Config::kStages - 1);
    const typename Config::Stage& stage = storage.stages[tile % Config::kStages];
    typename Tile::Scores s;
    Tile::multiply_rows(k, shared_address(stage.q), s, lane);
    float x[2][kTileRows / 4];  // of each key
#pragma unroll
    for (int i = 0; i < kTileRows / 2; ++i) {
      const float shift_log2 = stage.lse[i / 4 * 8 + lane % 4 * 2 + i % 2] * static_cast<float>(kLog2E);
      x[i / 2 % 2][i / 4 * 2 + i % 2] = exp2_approx(fmaf(s[i / 4][i % 4], p.scale_log2, -shift_log2));
    }
    sum_heads(x[0], shift);
    sum_heads(x[1], shift);
    const float factor = kTeacherOne / static_cast<float>(group);
#pragma unroll
    for (int i = 0; i < kTileRows / 4; ++i) {
      const int column = i / 2 * 8 + lane % 4 * 2 + i % 2, visit = tile * capacity + (column >> shift);
      if ((column & (group - 1)) != 0 || visit >= item.count) continue;
      *reinterpret_cast<std::uint32_t*>(to + visit * stride) = pack<__half>(x[0][i] * factor, x[1][i] * factor);
    }
  }
  async_wait<0>();
}

template <class Config>
__global__ void __launch_bounds__(kThreads, 2)
    teacher_kernel(const __grid_constant__ Params p, const __grid_constant__ TeacherTensors t) {
  extern __shared__ __align__(kTileAlignment) char shared[];
  auto& storage = *reinterpret_cast<typename Config::Storage*>(shared);
  wait_for_earlier_kernels();
  for_each_item(p.work, p.next_item + generic::training::kl::kTeacherItem, storage.next_item,
                [&](const generic::ListItem& item, std::int32_t) { teacher_item<Config>(p, t, item, storage); });
}

}  // namespace openmsa::cuda::sm80::training::kl
