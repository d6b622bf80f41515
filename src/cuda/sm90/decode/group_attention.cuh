// A warpgroup's attention to one query. Keys of a tile are the rows of the first product, channels of v those of the
// second; the heads of the query are the columns of both.
//
//   s[keys][heads]      = k q^T      k from registers, q from shared memory
//   o[channels][heads] += v^T w      v from registers, w = 2^(s - shift) from shared memory
//
// A warp reads 16 keys of k and a quarter of the channels of v, and the warpgroup has one result, where warps with keys
// of their own would each have one that has to be added to the others. In registers e4m3 becomes fp16 (cached_keys.cuh), and
// values of keys that nobody may see become zeros. w of a warp's keys lies where its keys were.
//
// shift is raised only where a score is larger by more than 8 (RaiseLazily), so that warps seldom exchange maxima. A
// thread holds keys g and g + 8 of its warp's 16, and heads 8 n + 2 t and 8 n + 2 t + 1; lane = 4 g + t.
//
//   barrier  arrivals        waited on by  guards
//   kGroup   the warpgroup   the same      w of a key tile, which is read by all, and whether a maximum has to be raised;
//                                          maxima of the warps
#pragma once

#include <cute/atom/mma_atom.hpp>
#include <cute/tensor.hpp>

#include "cuda/common/math.h"
#include "cuda/sm90/decode/group_operands.cuh"
#include "cuda/sm90/decode/params.h"
#include "cuda/sm90/ptx/matrix.cuh"
#include "cuda/sm90/tile/named_barrier.cuh"
#include "cuda/sm90/tile/product.cuh"
#include "cuda/sm90/tile/softmax.cuh"

namespace openmsa::cuda::sm90::decode {

/// Named barriers of the table above; number 1 is the kernel's.
enum class GroupBarrier {
  kGroup = 2,
};

/// The heads of a query on their way into shared memory. They are read long before they are wanted there.
template <class Config>
class GroupQuery {
  using Operands = typename Config::Operands;

 public:
  /// The last head fills up 16 rows.
  __device__ __forceinline__ void read(const AttendParams& p, std::int64_t row, std::int32_t head, int thread) {
    const int group_size = 1 << p.log2_group_size;
#pragma unroll
    for (int n = 0; n < kPerThread; ++n) {
      const int i = thread + n * kGroupThreads;
      const std::int64_t query_head = head * group_size + min(i / kChunks, group_size - 1);
      const auto* const from = static_cast<const typename Config::Element*>(p.q.data) + row * p.q.strides[0] +
                               query_head * p.q.strides[1] + i % kChunks * 8;
      chunks_[n] = __ldcg(reinterpret_cast<const uint4*>(from));
    }
  }

  __device__ __forceinline__ void place(GroupScratch<Operands>& scratch, int thread) const {
    using namespace cute;
    Tensor smem = make_tensor(make_smem_ptr(scratch.q), typename Operands::LayoutQ{});
#pragma unroll
    for (int n = 0; n < kPerThread; ++n) {
      const int i = thread + n * kGroupThreads, head = i / kChunks, channel = i % kChunks * 8;
      const auto channels = convert_channels<kChunks, typename Config::Element, typename Operands::Product>(
          chunks_[n], OPENMSA_INDEX_Q_EXACT);
      if constexpr (Operands::kIsQuantized) {
        store_as_widened(smem, head, channel, channels.packed);
      } else {
        *reinterpret_cast<uint4*>(&smem(head, channel)) = channels.packed;
      }
      if (channel == 0) scratch.units[head] = channels.unit;
    }
  }

 private:
  static constexpr int kChunks = Config::kDim / 8;  // of 16 bytes, of a head
  static constexpr int kPerThread = 16 * kChunks / kGroupThreads;
  uint4 chunks_[kPerThread];
};

template <class Config>
class GroupAttention {
  using Operands = typename Config::Operands;

 public:
  __device__ __forceinline__ GroupAttention() {
#pragma unroll
    for (auto& tile : o_) cute::clear(tile);
  }

  /// What scores of this thread's heads are multiplied by; the query is in shared memory.
  __device__ __forceinline__ void begin(const AttendParams& p, const GroupScratch<Operands>& scratch, int lane) {
    const bool has_scale = Operands::kIsQuantized && p.k_scale.is_for_all();
    const float scale_log2 = has_scale ? p.scale_log2 * *p.k_scale.data : p.scale_log2;
#pragma unroll
    for (int column = 0; column < 4; ++column) scale_[column] = scale_log2 * scratch.units[head_of(column, lane)];
  }

  /// The keys of a stage, of which the query sees those below `end` > 0.
  __device__ __forceinline__ void add(typename Config::Storage& storage, int stage, int end, const AttendParams& p,
                                      int warp, int lane) {
    using namespace cute;
    char* const k = storage.stages[stage].k;
    typename Operands::Keys keys;
    Operands::load_keys(k, warp, lane, keys);
    Scores scores;
    const auto score_slice = typename Operands::ScoreMma{}.get_thread_slice(threadIdx.x % kGroupThreads);
    const Tensor q = make_tensor(make_smem_ptr(storage.group.q), typename Operands::LayoutQ{});
    warpgroup_fence_operand(keys);
    start_product(typename Operands::ScoreMma{}, keys, score_slice.partition_fragment_B(q), scores, false);
    typename Operands::Values values[Operands::kChannelTiles];  // beside the product
    Operands::load_values(storage.stages[stage].v, warp, lane, values);
    warpgroup_wait<0>();
    warpgroup_fence_operand(scores);
    if (end < kTileKeys) Operands::hide_values(end, lane, values);
    float share[2] = {1, 1};
    if (Operands::kIsQuantized && p.v_scale.is_per_token()) weigh_values(storage.v_scale[stage], end, warp, lane, share);

    float s[8];  // [n][key g, g + 8][head]
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int key = key_of(i, warp, lane);
      float scale = scale_[column_of(i)];
      if (Operands::kIsQuantized && p.k_scale.is_per_token()) scale *= storage.k_scale[stage][key];
      s[i] = key < end ? scores(i) * scale : -INFINITY;
    }
    bool is_raised = is_first_;
    if (!is_first_) {
#pragma unroll
      for (int i = 0; i < 8; ++i) is_raised |= s[i] > max_[column_of(i)] + RaiseLazily::kSlack;
    }
    float w[8];
    if (!is_first_) {
      weigh_keys(s, share, k, warp, lane, w);
      is_raised = sync_or(GroupBarrier::kGroup, kGroupThreads, is_raised);
    }
    if (is_raised) {
      raise(s, storage.group.tops, warp, lane);
      weigh_keys(s, share, k, warp, lane, w);
      sync(GroupBarrier::kGroup, kGroupThreads);
    }
    is_first_ = false;
#pragma unroll
    for (int i = 0; i < 8; ++i) sum_[column_of(i)] += w[i];

    typename Operands::ValueMma mma;
    const auto value_slice = mma.get_thread_slice(threadIdx.x % kGroupThreads);
#pragma unroll
    for (int m = 0; m < Operands::kChannelTiles; ++m) {
      warpgroup_fence_operand(values[m]);
      warpgroup_fence_operand(o_[m]);
    }
    warpgroup_arrive();
    mma.accumulate_ = GMMA::ScaleOut::One;
#pragma unroll
    for (int step = 0; step < Operands::kKeySteps; ++step) {
      const Tensor right = value_slice.partition_fragment_B(Operands::weights(k, step));
#pragma unroll
      for (int m = 0; m < Operands::kChannelTiles; ++m) gemm(mma, values[m](_, _, step), right(_, _, 0), o_[m]);
    }
    warpgroup_commit_batch();
    warpgroup_wait<0>();
#pragma unroll
    for (auto& tile : o_) warpgroup_fence_operand(tile);
  }

  __device__ __forceinline__ void store(typename Config::Partial& partial, float value_scale, int warp,
                                        int lane) const {
    const float factor = unit_ > 0 ? unit_ * value_scale : value_scale;
#pragma unroll
    for (int column = 0; column < 4; ++column) {
      const int head = head_of(column, lane), at = column / 2 * 4 + column % 2;
#pragma unroll
      for (int m = 0; m < Operands::kChannelTiles; ++m) {
        Operands::store_pair(&partial.o[0][head][Operands::first_channel(m, warp, lane)], o_[m](at) * factor,
                             o_[m](at + 2) * factor);
      }
      const float total = sum_keys(sum_[column]);
      if (lane < 4) {
        partial.sum[warp][head] = total;
        if (warp == 0) partial.max[0][head] = max_[column] - kLift;
      }
    }
  }

 private:
  using Scores = decltype(cute::partition_fragment_C(typename Operands::ScoreMma{}, cute::Shape<cute::_64, cute::_16>{}));
  /// Weights in fp16 of e4m3 values are 2^7 times as large, 2^15 at most with RaiseLazily's slack.
  static constexpr float kLift = Operands::kIsQuantized ? 7 : 0;

  /// Accumulators: i = 4 n + 2 (0: key g, 1: key g + 8) + (0: head 2 t, 1: head 2 t + 1). Columns: 2 n + (0, 1).
  static __device__ __forceinline__ constexpr int column_of(int i) { return i / 4 * 2 + i % 2; }
  static __device__ __forceinline__ int head_of(int column, int lane) {
    return column / 2 * 8 + lane % 4 * 2 + column % 2;
  }
  static __device__ __forceinline__ int key_of(int i, int warp, int lane) {
    return warp * 16 + i / 2 % 2 * 8 + lane / 4;
  }

  static __device__ __forceinline__ float sum_keys(float x) {
#pragma unroll
    for (int distance = 4; distance < 32; distance *= 2) x += __shfl_xor_sync(kFullWarp, x, distance);
    return x;
  }

  /// w, and its products with `share` where the second product reads them.
  __device__ __forceinline__ void weigh_keys(const float (&s)[8], const float (&share)[2], char* k, int warp, int lane,
                                             float (&w)[8]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) w[i] = exp2_approx(s[i] - shift_[column_of(i)]);
    const auto pack = [&](int i) {
      return pack_two<typename Operands::Product>(w[i] * share[i / 2 % 2], w[i + 1] * share[i / 2 % 2]);
    };
    const std::uint32_t packed[4] = {pack(0), pack(2), pack(4), pack(6)};
    auto weights = Operands::weights(k, warp);
    store_matrices(&weights(lane / 16 * 8, lane % 16), packed);
    cutlass::arch::fence_view_async_shared();
  }

  /// Raises the maxima to those of all warps' keys, where they are exceeded by enough.
  __device__ __forceinline__ void raise(const float (&s)[8], float (&tops)[16][4], int warp, int lane) {
    float alpha[4];
#pragma unroll
    for (int column = 0; column < 4; ++column) {
      const int at = column / 2 * 4 + column % 2;
      float top = fmaxf(s[at], s[at + 2]);
#pragma unroll
      for (int distance = 4; distance < 32; distance *= 2) {
        top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, distance));
      }
      if (lane < 4) tops[head_of(column, lane)][warp] = top;
    }
    sync(GroupBarrier::kGroup, kGroupThreads);
#pragma unroll
    for (int column = 0; column < 4; ++column) {
      const float4 of_warps = *reinterpret_cast<const float4*>(tops[head_of(column, lane)]);
      const float top = fmaxf(fmaxf(of_warps.x, of_warps.y), fmaxf(of_warps.z, of_warps.w));
      alpha[column] = RaiseLazily{}(max_[column], top, shift_[column]);
      shift_[column] -= kLift;
      sum_[column] *= alpha[column];
    }
#pragma unroll
    for (auto& tile : o_) {
#pragma unroll
      for (int i = 0; i < 8; ++i) tile(i) *= alpha[column_of(i)];
    }
  }

  /// v_scale of this thread's keys as shares of the largest so far, so that w times it keeps to the range of 16 bits.
  __device__ __forceinline__ void weigh_values(const float* scales, int end, int warp, int lane,
                                               float (&share)[2]) {
    float largest = unit_;  // no NaN, not negative: its bits are in order
#pragma unroll
    for (int key = lane; key < kTileKeys; key += 32) largest = fmaxf(largest, key < end ? scales[key] : 0);
    largest = __int_as_float(__reduce_max_sync(kFullWarp, __float_as_int(largest)));
    const float inverse = largest > 0 ? 1 / largest : 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = key_of(2 * half, warp, lane);
      share[half] = key < end ? scales[key] * inverse : 0;
    }
    if (largest == unit_) return;
#pragma unroll
    for (auto& tile : o_) {
#pragma unroll
      for (int i = 0; i < 8; ++i) tile(i) *= unit_ * inverse;  // o counts in units of `largest` from here on
    }
    unit_ = largest;
  }

  typename Operands::Output o_[Operands::kChannelTiles];
  float scale_[4];
  float max_[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};  // base 2
  float shift_[4] = {};
  float sum_[4] = {};  // of this thread's keys
  float unit_ = 0;     // of o: the largest v_scale so far, where tokens have one each
  bool is_first_ = true;
};

}  // namespace openmsa::cuda::sm90::decode
