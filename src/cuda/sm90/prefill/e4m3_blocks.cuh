// The producer's side of e4m3 keys and values, which come in pages: a warp looks up the pages of several kv_blocks at
// once, and loads their scales, where tokens have one each.
//
// A key's scale multiplies its scores in fp32. A value's is rounded to fp16 and multiplies the value as it becomes 16
// bits wide, as a share of a unit: a power of two, so that no product is rounded otherwise for another unit. Shares reach
// up to 2^7: a value in e4m3 times its share stays below 448 * 2^7 < 65504, the largest number in fp16. The share of a
// scale of 2^-21 times the largest one is still a normal number.
#pragma once

#include <cuda_fp16.h>

#include <cute/arch/copy_sm90_tma.hpp>

#include "cuda/common/math.h"
#include "cuda/sm90/prefill/params.h"
#include "cuda/sm90/tile/pipeline.cuh"
#include "cuda/sm90/tile/widen.cuh"

namespace openmsa::cuda::sm90::prefill {

/// The power of two by which sums of values times shares are multiplied in the end, as its biased exponent. The largest
/// scale so far lies in [2^6, 2^7) units.
class ValueUnit {
 public:
  __device__ __forceinline__ void raise(float largest_scale) {
    exponent_ = max(exponent_, min((__float_as_int(largest_scale) >> 23) - kSpare, kMost));
  }
  __device__ __forceinline__ float value() const { return __int_as_float(exponent_ << 23); }
  __device__ __forceinline__ float inverse() const { return inverse_of_power(value()); }

  /// 1 / x of a power of two
  static __device__ __forceinline__ float inverse_of_power(float x) {
    return __int_as_float((254 << 23) - __float_as_int(x));
  }

 private:
  static constexpr int kSpare = 6, kLeast = 10, kMost = 244;  // the inverse of a unit is a normal number too
  int exponent_ = kLeast;
};

/// Pages of some kv_blocks of a sequence, by a warp: a block has 2^log2_pages of them, one in each lane.
template <int kBlock>
class BlockPages {
 public:
  /// Blocks whose pages a warp holds at once.
  static __device__ __forceinline__ int blocks_at_once(const BatchView& batch) { return 32 >> log2_pages_of(batch); }
  /// Which of them is this lane's.
  static __device__ __forceinline__ int block_of_lane(const BatchView& batch, int lane) {
    return lane >> log2_pages_of(batch);
  }

  /// `block`: this lane's, if it `exists`. Pages past the end of the sequence are not looked up.
  __device__ __forceinline__ BlockPages(const BatchView& batch, std::int32_t sequence, std::int32_t seqlen_k,
                                        std::int32_t block, bool exists, int lane)
      : log2_page_size_(log2_of(batch.page_size)), log2_pages_(log2_pages_of(batch)), lane_(lane), block_(block) {
    const std::int32_t number = (block << log2_pages_) + page_in_block();
    exists_ = exists && number << log2_page_size_ < seqlen_k;
    page_ = exists_ ? batch.page(sequence, number) : 0;
  }

  /// First key of block i of those held.
  __device__ __forceinline__ std::int32_t first_key(int i) const {
    return __shfl_sync(kFullWarp, block_, i << log2_pages_) * kBlock;
  }

  /// Where key `key` of block i lies among all tokens of the cache; all lanes ask together.
  __device__ __forceinline__ std::int64_t token(int i, int key) const {
    const std::int64_t page = __shfl_sync(kFullWarp, page_, (i << log2_pages_) + (key >> log2_page_size_));
    return (page << log2_page_size_) + (key & ((1 << log2_page_size_) - 1));
  }

  /// Loads block i, of which `used` keys lie in the sequence, into a swizzled [kBlock][kDim] tile of e4m3, page by page,
  /// and tells `full` how many bytes will come. What this warp has written before is seen by who waits for `full`.
  template <int kDim, class Cached>
  __device__ __forceinline__ void load(const CUtensorMap& map, std::int32_t head, int i, int used, Cached* tile,
                                       std::uint64_t* full) const {
    const int page_bytes = kDim << log2_page_size_, pages = (used + (1 << log2_page_size_) - 1) >> log2_page_size_;
    __syncwarp();
    if (lane_ == 0) FullBarrier::arrive_and_expect_tx(full, pages * page_bytes);
    __syncwarp();
    if (exists_ && lane_ >> log2_pages_ == i) {
      cute::SM90_TMA_LOAD_4D::copy(&map, full, static_cast<std::uint64_t>(cute::TMA::CacheHintSm90::EVICT_NORMAL),
                                   tile + page_in_block() * page_bytes, 0, head, 0, page_);
    }
  }

 private:
  static __device__ __forceinline__ int log2_pages_of(const BatchView& batch) {
    return log2_of(kBlock) - log2_of(batch.page_size);
  }
  __device__ __forceinline__ int page_in_block() const { return lane_ & ((1 << log2_pages_) - 1); }

  int log2_page_size_, log2_pages_, lane_;
  std::int32_t block_, page_;
  bool exists_;
};

/// Scales of the first `count` keys of a kv_block, of key 32 i + lane in a lane; zeros after them.
template <int kBlock>
struct BlockScales {
  static constexpr int kPerLane = kBlock / 32;
  float k[kPerLane], v[kPerLane];

  /// Of block `number` of those whose pages are held.
  __device__ __forceinline__ BlockScales(const AttendParams& p, const BlockPages<kBlock>& pages, int number, int count,
                                         int lane) {
    const bool has_k = p.k_scale.is_per_token(), has_v = p.v_scale.is_per_token();
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      k[i] = v[i] = 0;
      if (!has_k && !has_v) continue;
      const std::int64_t token = pages.token(number, 32 * i + lane);
      if (has_k && 32 * i + lane < count) k[i] = of_token(p.k_scale, p.work.head, token);
      if (has_v && 32 * i + lane < count) v[i] = of_token(p.v_scale, p.work.head, token);
    }
  }

  __device__ __forceinline__ void store_keys(float* to, int lane) const {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) to[scale_place(32 * i + lane)] = k[i];
  }

  __device__ __forceinline__ float largest_of_values() const {
    float largest = v[0];
#pragma unroll
    for (int i = 1; i < kPerLane; ++i) largest = fmaxf(largest, v[i]);
    return __int_as_float(__reduce_max_sync(kFullWarp, __float_as_int(largest)));  // they are not negative
  }

  /// Into a tile of values that has not been widened yet.
  template <class Tile>
  __device__ __forceinline__ void store_shares(const ValueUnit& unit, void* tile, int lane) const {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const __half2 share = __float2half2_rn(v[i] * unit.inverse());
      Tile::share(tile, 32 * i + lane) = *reinterpret_cast<const std::uint32_t*>(&share);
    }
  }

 private:
  static __device__ __forceinline__ float of_token(const TokenScale& scale, std::int32_t head, std::int64_t token) {
    return scale.data[head * scale.head_stride + token * scale.token_stride];
  }
};

/// Whether keys or values have a scale for each token.
__device__ __forceinline__ bool has_scales_of_tokens(const AttendParams& p) {
  return p.k_scale.is_per_token() || p.v_scale.is_per_token();
}

/// A scale that all tokens share; 1 where there is none, or one per token.
__device__ __forceinline__ float scale_for_all(const TokenScale& scale) {
  return scale.is_for_all() ? *scale.data : 1.0f;
}

}  // namespace openmsa::cuda::sm90::prefill
