// A stage of index keys in shared memory, with the scales of e4m3.
#pragma once

#include "cuda/sm80/select/params.h"
#include "cuda/sm80/tile/load_keys.cuh"

namespace openmsa::cuda::sm80::select {

template <class Product, int kKeys_>
struct KeyStage {
  static constexpr bool kIsQuantized = Product::kIsQuantized;
  static constexpr int kKeys = kKeys_;
  static constexpr int kRowBytes = Product::kRowBytes;
  alignas(kTileAlignment) char keys[kKeys * kRowBytes];
  alignas(16) float scales[Product::kIsQuantized ? kKeys : 4];  // of its keys, or of its kv_blocks
};

/// Keys [first, first + kKeys) of a sequence, by kThreads threads.
template <int kThreads, class Stage>
__device__ __forceinline__ void load_stage(const SelectParams& p, const SequenceKeys& sequence, std::int32_t first,
                                           Stage& stage, int thread) {
  load_keys<Stage::kKeys, Stage::kRowBytes, kThreads>(sequence, p.index_k, 0, first, shared_address(stage.keys),
                                                      thread);
  if constexpr (!Stage::kIsQuantized) return;
  if (p.index_k_scale.is_per_token()) {
    load_scales<Stage::kKeys, kThreads>(sequence, p.index_k_scale, 0, first, shared_address(stage.scales), thread);
  } else if (p.index_block_scale.exists()) {
    const int log2_block = log2_of(p.rules.block_size);
    const std::int32_t key = ((first >> log2_block) + thread) << log2_block;
    if (key < first + Stage::kKeys) {
      const bool exists = key < sequence.end;
      const float* const scale = p.index_block_scale.data + sequence.page(key) * p.index_block_scale.page_stride;
      async_copy_4(shared_address(stage.scales + thread), scale, exists);
    }
  }
}

}  // namespace openmsa::cuda::sm80::select
