// Launches the kernels of dense attention.
#pragma once

#include "cuda/sm90/dense/decode.cuh"
#include "cuda/sm90/dense/kernels.h"
#include "cuda/sm90/dense/prompt.cuh"
#include "cuda/sm90/heuristics.h"
#include "cuda/sm90/tile/element.cuh"

namespace openmsa::cuda::sm90::dense {

template <openmsa_dtype kDtype, int kDim>
void launch_prompt(const PromptParams& p, const CUtensorMap& q, const CUtensorMap& k, const CUtensorMap& v,
                   Launch launch) {
  using Config = PromptConfig<Element<kDtype>, kDim>;
  cuda::launch("dense_prompt", prompt_kernel<Config>,
               {static_cast<unsigned int>(launch.num_sms), Config::kThreads, sizeof(typename Config::Storage) + 1024},
               launch.stream, p, q, k, v);
}

template <openmsa_dtype kDtype, openmsa_dtype kCached, int kDim>
void launch_decode(const DecodeParams& p, const CUtensorMap& k, const CUtensorMap& v, Launch launch) {
  const auto ctas = static_cast<unsigned int>(p.ctas);
  const auto start = [&](auto config) {
    using Config = decltype(config);
    cuda::launch("dense_decode", decode_kernel<Config>,
                 {ctas, Config::kThreads, sizeof(typename Config::Storage) + 1024}, launch.stream, p, k, v);
  };
  if (p.tile_queries == 1) {
    start(DecodeConfig<Element<kDtype>, Element<kCached>, kDim, 1>{});
  } else {
    start(DecodeConfig<Element<kDtype>, Element<kCached>, kDim, kDenseTileQueries>{});
  }
  const auto rows = static_cast<unsigned int>(16 * p.tile_queries);
  cuda::launch("dense_merge", merge_kernel<Element<kDtype>, kDim>, {{ctas, rows / kMergeWarps}, 32 * kMergeWarps, 0},
               launch.stream, p);
}

}  // namespace openmsa::cuda::sm90::dense
