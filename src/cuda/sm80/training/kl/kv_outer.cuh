// KL loss and gradients with kv_blocks in the outer loop: each work item is a kv_block and the query rows of one KV head
// that visit it, in ascending order. Steps of 32 queries stream past:
//
//   s_idx^T[16 keys][32 queries]   = index_k index_q^T
//   d_index_k[16 keys][kIndexDim] += (w g)^T index_q        g = P_idx - P, from registers
//   d_index_q[32 queries][kIndexDim] = g index_k            through shared memory
//
// The teacher's probabilities come from memory, a step ahead. d_index_k stays in registers for the whole item, and is added
// to that in memory in the item's turn. d_index_q leaves with every step, as fixed-point numbers. Waits as in backward.cuh.
#pragma once

#include "cuda/common/grid_dependency.cuh"
#include "cuda/sm80/heuristics.h"
#include "cuda/sm80/ptx/math.cuh"
#include "cuda/sm80/ptx/turn.cuh"
#include "cuda/sm80/training/kl/teacher.cuh"

namespace openmsa::cuda::sm80::training::kl {

using generic::training::kl::kFixedOne;
using generic::training::kl::kStepQueries;
using generic::training::kl::RowStats;
static_assert(kStepQueries == kTileRows);

/// What is known of a step's queries.
struct StepRows {
  float lse2[kStepQueries];
  float weight[kStepQueries];
  float to_fixed[kStepQueries];      // of d_index_q as it leaves the product
  std::int32_t keys[kStepQueries];   // of the kv_block, that the query sees; 0: it contributes nothing
  std::int32_t q_row[kStepQueries];  // -1: none
};

template <class Element, int kIndexDim>
struct Config {
  using Tile = TrainingTile<Element, kIndexDim>;
  static constexpr int kStages = 2;
  static constexpr float kGradientScale = generic::training::kl::gradient_scale(std::is_same_v<Element, __half>);
  struct Storage {
    alignas(kTileAlignment) char index_k[kTileKeys * Tile::kRowBytes];
    alignas(kTileAlignment) char index_q[kStages][kStepQueries * Tile::kRowBytes];
    alignas(kTileAlignment) char gradients[Tile::kScoreBytes];
    alignas(16) StepRows rows[kStages];
    float loss[kWarps];
    std::int32_t next_item;
  };
  static_assert(sizeof(Storage) <= kSharedBytes);
};

/// A query of a step as its lane knows it.
struct StepQuery {
  std::int32_t row;  // -1: none
  RowStats stats;

  __device__ __forceinline__ StepQuery(const Params& p, const generic::ListItem& item, int visit)
      : row(p.work.visited_row(item, visit)), stats{INFINITY, 0, 1} {
    if (row >= 0) stats = p.stats[p.work.place(item.head, row)];
  }
  /// Whether the row has something to add; NaN too.
  __device__ __forceinline__ bool contributes() const { return row >= 0 && stats.weight != 0; }
  /// Whether index_q may meet gradients of 0: a NaN there would not stay with the keys that the row sees. Those get
  /// theirs from lse2.
  __device__ __forceinline__ bool is_clean() const { return contributes() && isfinite(stats.lse2); }

  __device__ __forceinline__ void store(const Params& p, StepRows& rows, std::int32_t first_row, float gradient_scale,
                                        int lane) const {
    rows.lse2[lane] = stats.lse2;
    rows.weight[lane] = stats.weight;
    rows.to_fixed[lane] = kFixedOne / gradient_scale / stats.bound;
    rows.keys[lane] = contributes() ? min(first_row + row + 1, p.batch.block_size) : 0;
    rows.q_row[lane] = row;
  }
};

/// The teacher's probabilities of a step, of a lane's two keys and its queries, columns 8 (i / 2) + 2 (lane % 4) + i % 2.
struct TeacherStep {
  std::uint32_t of[kStepQueries / 4];  // two fp16, times kTeacherOne

  /// Of the step whose first visit is `begin`; where it has no such query, those of the item's last one.
  __device__ __forceinline__ void read(const std::uint16_t* visits, std::int64_t stride, int begin, int count,
                                       int lane) {
#pragma unroll
    for (int i = 0; i < kStepQueries / 4; ++i) {
      const int query = min(begin + i / 2 * 8 + lane % 4 * 2 + i % 2, count - 1);
      of[i] = *reinterpret_cast<const std::uint32_t*>(visits + query * stride);
    }
  }
};

/// g = P_idx - P of a step, times gradient_scale, in the place of the student's scores; adds the lane's share of the loss,
/// times kTeacherOne / ln 2, to `loss`: sum_j P (log2 P - log2 P_idx). Keys that a query does not see have neither.
template <class Config>
__device__ __forceinline__ void step_gradients(const Params& p, const StepRows& rows, typename Config::Tile::Scores& s,
                                               const TeacherStep& teacher, int key, int lane, float& loss) {
  constexpr float kLog2One = 12;
  static_assert(kTeacherOne == 1 << 12);
#pragma unroll
  for (int i = 0; i < kStepQueries / 2; ++i) {
    float& x = s[i / 4][i % 4];
    const int column = i / 4 * 8 + lane % 4 * 2 + i % 2;
    const float2 pair = unpack<__half>(teacher.of[i / 4 * 2 + i % 2]);
    const float probability = i / 2 % 2 == 0 ? pair.x : pair.y;  // times kTeacherOne
    const float log2_student = fmaf(x, p.index_scale_log2, -rows.lse2[column]);
    const bool is_seen = key + i / 2 % 2 * 8 < rows.keys[column];
    x = is_seen ? fmaf(probability, -1 / kTeacherOne, exp2_approx(log2_student)) * Config::kGradientScale : 0;
    if (is_seen && probability != 0) {  // NaN too
      loss = fmaf(rows.weight[column] * probability, log2_approx(probability) - kLog2One - log2_student, loss);
    }
  }
}

/// Adds a warp's part of d_index_q to the sums in memory.
template <class Tile>
__device__ __forceinline__ void add_index_rows(const Params& p, const generic::ListItem& item,
                                               const typename Tile::RowGradients& d, const StepRows& rows, int warp,
                                               int lane) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = Tile::own_row(warp) + i * 8 + lane / 4;
    const std::int32_t q_row = rows.q_row[row];
    if (q_row < 0) continue;
    std::int32_t* const to =
        p.d_index_q_sums + p.work.place(item.head, q_row) * Tile::kDim + Tile::own_channel(warp) + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < Tile::kOwnColumns; ++n) {
      atomicAdd(to + n * 8, __float2int_rn(d[n][2 * i] * rows.to_fixed[row]));
      atomicAdd(to + n * 8 + 1, __float2int_rn(d[n][2 * i + 1] * rows.to_fixed[row]));
    }
  }
}

template <class Config>
__device__ __forceinline__ void kl_item(const Params& p, const KeyTensor& index_k, const generic::ListItem& item,
                                        std::int32_t number, typename Config::Storage& storage) {
  using Tile = typename Config::Tile;
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, key = warp * kWarpKeys + lane / 4;
  const SequenceKeys keys = keys_of(p.batch, item);
  const std::int32_t first_key = item.block * p.batch.block_size, first_row = first_position(p.batch, item);
  const std::uint32_t k = shared_address(storage.index_k), gradients = shared_address(storage.gradients);
  /// What the step from visit `begin` on needs: rows of index_q, those that are not clean as zeros, and StepRows.
  const auto load_step = [&](int begin, int stage) {
    RowCopies<Tile> copies;
    copies.find(p.work, item, begin, 0, thread);
#pragma unroll
    for (int i = 0; i < RowCopies<Tile>::kCount; ++i) {
      const int visit = begin + i * RowCopies<Tile>::kRowsAtOnce + thread / RowCopies<Tile>::kChunks;
      if (!StepQuery(p, item, visit).is_clean()) copies.q_rows[i] = -1;
    }
    copies.copy(p.index_q, item.head, 0, shared_address(storage.index_q[stage]), thread);
    async_commit();
    if (warp == 0) {
      StepQuery(p, item, begin + lane).store(p, storage.rows[stage], first_row, Config::kGradientScale, lane);
    }
  };
  load_keys<kTileKeys, Tile::kRowBytes, kThreads>(keys, index_k, 0, first_key, k, thread);
  load_step(0, 0);
  const std::int64_t stride = std::int64_t{p.teacher.stride()} * kTileKeys;
  const std::uint16_t* const visits = p.teacher.data + p.teacher.first_visit(p.work, item) * kTileKeys + key_pair(key);
  TeacherStep teacher;
  teacher.read(visits, stride, 0, item.count, lane);
  async_wait<0>();
  clear_what_is_not_finite<Tile, kTileKeys>(storage.index_k, thread);  // as in the gradient of attention

  typename Tile::KeyGradients d_index_k = {};
  float loss = 0;
  int stage = 0;
#pragma unroll 1
  for (int begin = 0; begin < item.count; begin += kStepQueries, stage ^= 1) {
    async_wait<0>();
    __syncthreads();
    const StepRows& rows = storage.rows[stage];
    if (begin + kStepQueries < item.count) load_step(begin + kStepQueries, stage ^ 1);
    const std::uint32_t q = shared_address(storage.index_q[stage]);
    typename Tile::Scores s;
    typename Tile::RoundedScores rounded;
    Tile::multiply_rows(k, q, s, warp, lane);
    step_gradients<Config>(p, rows, s, teacher, key, lane, loss);
    teacher.read(visits, stride, begin + kStepQueries, item.count, lane);
    Tile::round(s, rounded);
    Tile::store_scores(rounded, storage.gradients, warp, lane);
#pragma unroll
    for (int i = 0; i < kStepQueries / 2; ++i) {
      const int column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      if (key + i / 2 % 2 * 8 < rows.keys[column]) s[i / 4][i % 4] *= rows.weight[column];
    }
    Tile::round(s, rounded);
    Tile::add_key_gradients(rounded, q, d_index_k, lane);
    __syncthreads();
    typename Tile::RowGradients d_index_q;
    Tile::multiply_keys(gradients, k, d_index_q, warp, lane);
    add_index_rows<Tile>(p, item, d_index_q, rows, warp, lane);
  }

#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) loss += __shfl_xor_sync(kFullWarp, loss, distance);
  if (lane == 0) storage.loss[warp] = loss / kTeacherOne;
  add_in_turn(p.work, item, [&] {
    const std::int64_t row = std::int64_t{item.head - p.work.first_head} * p.batch.total_k + keys.k_row + first_key;
    add_to_keys<Tile>(d_index_k, p.d_index_k_sums + row * Tile::kDim, Tile::kDim, keys.end - first_key, warp, lane);
    if (thread == 0) {
      float sum = 0;
#pragma unroll
      for (const float x : storage.loss) sum += x;
      p.item_loss[number] = sum;
    }
  });
}

template <class Config>
__global__ void __launch_bounds__(kThreads, 1)
    kl_kernel(const __grid_constant__ Params p, const __grid_constant__ KeyTensor index_k) {
  extern __shared__ __align__(kTileAlignment) char shared[];
  auto& storage = *reinterpret_cast<typename Config::Storage*>(shared);
  wait_for_earlier_kernels();
  for_each_item(
      p.work, p.next_item + generic::training::kl::kStepsItem, storage.next_item,
      [&](const generic::ListItem& item, std::int32_t number) { kl_item<Config>(p, index_k, item, number, storage); });
}

}  // namespace openmsa::cuda::sm80::training::kl
