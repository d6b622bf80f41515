// Launches the kernels of the index branch.
#pragma once

#include <algorithm>

#include "cuda/sm80/select/decode.cuh"
#include "cuda/sm80/select/kernels.h"
#include "cuda/sm80/select/prompt.cuh"

namespace openmsa::cuda::sm80::select {

template <openmsa_dtype kCached, int kDim>
void launch_prompt(const SelectParams& p, int capacity, int max_tiles, Launch launch) {
  const auto start = [&](auto config) {
    using Config = decltype(config);
    const auto ctas = static_cast<unsigned int>(std::min(launch.num_sms, max_tiles * p.most_splits));
    cuda::launch("select", prompt_kernel<Config>,
                 {{ctas}, Config::kThreads, Config::kStages * sizeof(typename Config::Stage)}, launch.stream, p);
  };
  if (capacity == kNoList) return start(PromptConfig<Element<kCached>, kDim, kNoList>{});
  if (capacity == kListCapacities[0]) return start(PromptConfig<Element<kCached>, kDim, kListCapacities[0]>{});
  start(PromptConfig<Element<kCached>, kDim, kListCapacities[1]>{});
}

template <openmsa_dtype kCached, int kDim>
void launch_decode(const SelectParams& p, Launch launch) {
  using Config = DecodeConfig<Element<kCached>, kDim>;
  const auto ctas = static_cast<unsigned int>(kScoreCtasPerSm * launch.num_sms);
  cuda::launch("decode_scores", score_kernel<Config>, {{ctas}, Config::kThreads, sizeof(typename Config::Storage)},
               launch.stream, p);
}

}  // namespace openmsa::cuda::sm80::select
