// The producer's side of fp8 keys: one scale per token, beside the keys.
#pragma once

#include "cuda/common/tensor_view.h"
#include "cuda/sm90/ptx/async_copy.cuh"

namespace openmsa::cuda::sm90 {

/// Starts the copy of the scales of the first `count` keys of a tile, 4 bytes at a time, and makes `full` wait for
/// them: every lane arrives there once. token(at): where key `at` of the tile lies among all tokens; all lanes ask
/// together.
template <int kTileKeys, class Token>
__device__ __forceinline__ void load_scales(const TokenScale& scale, std::int32_t head, std::int32_t count, float* to,
                                            std::uint64_t* full, int lane, Token token) {
#pragma unroll
  for (int i = 0; i < kTileKeys / 32; ++i) {
    const int at = i * 32 + lane;
    const std::int64_t from = token(at);
    if (at < count) async_copy_4(to + at, scale.data + head * scale.head_stride + from * scale.token_stride);
  }
  async_arrive(full);
}

/// The same with the scales of the kv_blocks that begin in a tile, `blocks` of them, one after the other. first_page(at):
/// the first page of block `at`, negative where it has no key.
template <class FirstPage>
__device__ __forceinline__ void load_block_scales(const BlockScale& scale, int blocks, float* to, std::uint64_t* full,
                                                  int lane, FirstPage first_page) {
  const std::int64_t page = first_page(lane);
  if (lane < blocks && page >= 0) async_copy_4(to + lane, scale.data + page * scale.page_stride);
  async_arrive(full);
}

}  // namespace openmsa::cuda::sm90
