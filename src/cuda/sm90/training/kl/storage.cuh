// Shared memory of kv_outer.cuh: rings between its producers and consumers.
#pragma once

#include "cuda/sm90/tile/pipeline.cuh"
#include "cuda/sm90/training/kl/tile.cuh"

namespace openmsa::cuda::sm90::training::kl {

/// What is known of a step's queries, put beside their index_q by the producer.
struct alignas(16) StepRows {
  float lse2[kStepQueries];
  float weight[kStepQueries];
  float to_fixed[kStepQueries];     // of d_index_q as it leaves the product
  std::int32_t keys[kStepQueries];  // of the kv_block, that the query sees; 0: it contributes nothing
  bool is_masked;                   // some query does not see all kTileKeys
};

template <class Element, int kIndexDim>
struct Config {
  using Tile = kl::Tile<Element, kIndexDim>;
  static constexpr int kConsumers = 2;
  static constexpr int kConsumerThreads = 128 * kConsumers;
  static constexpr int kThreads = kConsumerThreads + 128;
  static constexpr int kItemStages = 2, kIndexKeyStages = 2, kStepStages = 4, kSumStages = 2;
  static constexpr int kStepWarps = 2;  // that produce steps in turns
  // g leaves its registers times this: fp16 has no small numbers. |g| <= 1.
  static constexpr float kGradientScale = gradient_scale(cute::is_same_v<Element, cutlass::half_t>);
  // Of a query's sums in int32, so that eight channels of four queries lie in different banks.
  static constexpr int kSumStride = kIndexDim + 4;

  struct Storage {
    alignas(1024) Element index_k[kIndexKeyStages][kTileKeys * kIndexDim];
    alignas(1024) Element index_q[kStepStages][kStepQueries * kIndexDim];
    alignas(1024) Element gradients[2][kStepQueries * kTileKeys];
    alignas(16) std::int32_t sums[kSumStages][kStepQueries * kSumStride];  // d_index_q of a step, on its way to memory
    alignas(16) StepRows rows[kStepStages];
    WorkItem items[kItemStages];
    float loss[kConsumerThreads / 32];  // of each warp
    std::uint64_t item_full[kItemStages], item_empty[kItemStages];
    std::uint64_t index_k_full[kIndexKeyStages], index_k_empty[kIndexKeyStages];
    std::uint64_t step_full[kStepStages], step_empty[kStepStages];
    std::uint64_t sums_full[kSumStages], sums_empty[kSumStages];
  };
};

}  // namespace openmsa::cuda::sm90::training::kl
