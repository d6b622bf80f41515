// Launches the index branch.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/sm90/prefill/select/kernels.h"
#include "cuda/sm90/prefill/select/merge.cuh"
#include "cuda/sm90/prefill/select/select.cuh"
#include "cuda/sm90/tile/element.cuh"

namespace openmsa::cuda::sm90::prefill {

template <openmsa_dtype kDtype, openmsa_dtype kCached, int kDim, int kBlock, int kCapacity>
void launch_select(const SelectParams& p, const CUtensorMap& index_k, int max_tiles, Launch launch) {
  const auto start = [&](auto has_token_scales, auto is_exact) {
    using Config = SelectConfig<Element<kDtype>, Element<kCached>, kDim, kBlock, kCapacity,
                                decltype(has_token_scales)::value, decltype(is_exact)::value>;
    const unsigned int ctas = std::min(launch.num_sms, max_tiles * p.most_splits);
    cuda::launch("select", select_kernel<Config>, {ctas, Config::kThreads, sizeof(typename Config::Storage) + 1024},
                 launch.stream, p, index_k);
  };
  constexpr std::false_type kNo;
  if constexpr (kCached == OPENMSA_FLOAT8_E4M3) {
    constexpr std::true_type kYes;
    const bool has_token_scales = p.index_k_scale.token_stride != 0;
    if (p.index_q.rounding == OPENMSA_INDEX_Q_EXACT) {
      has_token_scales ? start(kYes, kYes) : start(kNo, kYes);
    } else {
      has_token_scales ? start(kYes, kNo) : start(kNo, kNo);
    }
  } else {
    start(kNo, kNo);
  }
  if constexpr (kCapacity != 0) {
    if (p.most_splits > 1) {
      const auto ctas = static_cast<unsigned int>(kMergeCtasPerSm * launch.num_sms);
      cuda::launch("merge_lists", merge_lists_kernel<kCapacity>, {ctas, kMergeWarps * 32, 0}, launch.stream, p);
    }
  }
}

}  // namespace openmsa::cuda::sm90::prefill
