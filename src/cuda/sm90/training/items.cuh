// What kernels with kv_blocks in the outer loop do with a work item: the ring through which a CTA's warps meet it, and
// keys that are not finite.
#pragma once

#include <cutlass/arch/barrier.h>
#include <cutlass/numeric_types.h>

#include <cstdint>
#include <cute/config.hpp>
#include <cute/util/type_traits.hpp>

#include "cuda/sm90/tile/pipeline.cuh"

namespace openmsa::cuda::sm90::training {

inline constexpr int kTileKeys = 128;  // keys of a work item

/// The CTA's items one after the other, for a warp that reads them from the ring. count 0: no more.
template <class Storage, class Work>
__device__ __forceinline__ void for_each_item(Storage& storage, Work work) {
  PipelineState<sizeof(storage.items) / sizeof(storage.items[0])> ring;
  for (;; ring.advance()) {
    FullBarrier::wait(&storage.item_full[ring.stage], ring.phase);
    const auto item = storage.items[ring.stage];
    __syncwarp();
    if (threadIdx.x % 32 == 0) EmptyBarrier::arrive(&storage.item_empty[ring.stage]);
    if (item.count == 0) return;
    work(item);
  }
}

/// Whether none of eight elements is NaN or infinite: their exponents are not all ones.
template <class Element>
__device__ __forceinline__ bool is_finite(const uint4& chunk) {
  constexpr std::uint32_t kExponent = cute::is_same_v<Element, cutlass::half_t> ? 0x7c00u : 0x7f80u;
  bool finite = true;
  for (const std::uint32_t two : {chunk.x, chunk.y, chunk.z, chunk.w}) {
    finite &= (two & kExponent) != kExponent && (two >> 16 & kExponent) != kExponent;
  }
  return finite;
}

/// Chunks of a tile of keys that are not finite become 0, for kThreads threads, which have to meet after it.
template <int kDim, int kThreads, class Element>
__device__ __forceinline__ void clear_keys_not_finite(Element* keys, int thread) {
  auto* const chunks = reinterpret_cast<uint4*>(keys);
  bool found = false;
#pragma unroll
  for (int i = 0; i < kTileKeys * kDim / 8 / kThreads; ++i) {
    uint4& chunk = chunks[i * kThreads + thread];
    if (is_finite<Element>(chunk)) continue;
    chunk = uint4{0, 0, 0, 0};
    found = true;
  }
  if (found) cutlass::arch::fence_view_async_shared();
}

}  // namespace openmsa::cuda::sm90::training
