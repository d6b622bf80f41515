// Merging what shards have given: parameters of the kernels.
#pragma once

#include <cstdint>

#include "cuda/common/batch_view.h"
#include "cuda/common/selection.h"
#include "cuda/common/tensor_view.h"

namespace openmsa::cuda::generic {

struct MergeCandidatesParams {
  BatchView batch;
  SelectionRules rules;
  std::int32_t heads;
  std::int32_t shards;

  CandidateView candidates;  // of shard 0
  std::int64_t shard_stride;
  SelectionView topk_indices;
};

struct MergePartialsParams {
  BatchView batch;
  std::int32_t heads;     // of queries
  std::int32_t head_dim;  // a multiple of 4
  std::int32_t shards;

  const void* partial_o;  // [shards][total_q][heads][head_dim]
  std::int64_t o_strides[3];
  const float* partial_lse;  // [shards][total_q][heads]
  std::int64_t lse_strides[3];
  OutputRows out;
};

}  // namespace openmsa::cuda::generic
