// Launches the attention kernels.
#pragma once

#include "cuda/sm80/attend/decode.cuh"
#include "cuda/sm80/attend/kernels.h"
#include "cuda/sm80/attend/kv_outer.cuh"
#include "cuda/sm80/attend/merge.cuh"
#include "cuda/sm80/attend/q_outer.cuh"

namespace openmsa::cuda::sm80::attend {

template <openmsa_dtype kDtype, openmsa_dtype kCached, int kDim>
void launch_scheduled(const PromptBatches& batches, int count, Launch launch) {
  using Outer = KvOuterConfig<Element<kDtype>, Element<kCached>, kDim>;
  using Inner = QOuterConfig<Element<kDtype>, Element<kCached>, kDim>;
  const auto rows = static_cast<unsigned int>(count);
  const auto ctas = static_cast<unsigned int>(kPromptCtasPerSm * launch.num_sms);
  cuda::launch("kv_outer", kv_outer_kernel<Outer>, {{ctas, rows}, Outer::kThreads, sizeof(typename Outer::Storage)},
               launch.stream, batches);
  const auto tiles = static_cast<unsigned int>(batches.of[0].work.max_tiles);
  cuda::launch("q_outer", q_outer_kernel<Inner>, {{tiles, rows}, Inner::kThreads, sizeof(typename Inner::Storage)},
               launch.stream, batches);
  using Merge = MergeConfig<typename Inner::Product>;
  cuda::launch("merge", merge_kernel<typename Inner::Product>,
               {{tiles * Merge::kCtasPerTile, rows}, Merge::kThreads, 0}, launch.stream, batches);
}

template <openmsa_dtype kDtype, openmsa_dtype kCached, int kDim>
void launch_dense(const PromptParams& p, std::int64_t max_tiles, Launch launch) {
  using Config = QOuterConfig<Element<kDtype>, Element<kCached>, kDim>;
  PromptBatches one;
  one.of[0] = p;
  cuda::launch("dense_attention", q_outer_kernel<Config>,
               {{static_cast<unsigned int>(max_tiles * p.heads)}, Config::kThreads, sizeof(typename Config::Storage)},
               launch.stream, one);
}

template <openmsa_dtype kDtype, openmsa_dtype kCached, int kDim>
void launch_decode(const DecodeParams& p, Launch launch) {
  using Config = DecodeConfig<Element<kDtype>, Element<kCached>, kDim>;
  const auto rows = static_cast<unsigned int>(p.batch.total_q * p.heads);
  cuda::launch("decode_attend", decode_kernel<Config>,
               {{rows * p.splits}, Config::kThreads, sizeof(typename Config::Storage)}, launch.stream, p);
  if (p.splits == 1) return;
  const unsigned int ctas = ctas_for(std::int64_t{rows} << p.log2_group_size, kCombineWarps);
  cuda::launch("decode_combine", combine_kernel<Element<kDtype>, kDim>, {{ctas}, kCombineWarps * 32, 0}, launch.stream,
               p);
}

}  // namespace openmsa::cuda::sm80::attend
