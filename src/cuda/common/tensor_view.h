// Tensors of a call as kernels see them: pointer and strides together. Strides count elements.
#pragma once

#include <openmsa/openmsa.h>

#include <cstdint>

#include "cuda/common/device.h"
#include "cuda/common/topk_key.h"

namespace openmsa::cuda {

/// A strided int32 vector in device memory; nullptr: absent.
struct IntVector {
  const std::int32_t* data;
  std::int64_t stride;
  OPENMSA_DEVICE std::int32_t at(std::int64_t i) const { return data[i * stride]; }
};

/// Plain load of an element.
struct Ld {
  OPENMSA_DEVICE std::int32_t operator()(IntVector vector, std::int64_t i) const { return vector.at(i); }
};
#ifdef __CUDACC__
/// Load from the L2 cache (ld.global.cg), past what the SM's L1 may have kept of an earlier value.
struct LdCg {
  OPENMSA_DEVICE std::int32_t operator()(IntVector vector, std::int64_t i) const {
    return __ldcg(vector.data + i * vector.stride);
  }
};
#endif

/// Scale of an fp8 cache: absent, one for all tokens, or one per token (and per head).
struct TokenScale {
  const float* data;  // nullptr: 1
  std::int64_t head_stride;
  std::int64_t token_stride;  // physical tokens; 0: one for all
  OPENMSA_DEVICE bool is_per_token() const { return token_stride != 0; }
  OPENMSA_DEVICE bool is_for_all() const { return data != nullptr && token_stride == 0; }
};

/// Scales of the kv_blocks of an fp8 cache, each at its first page.
struct BlockScale {
  const float* data;  // nullptr: kv_blocks have none
  std::int64_t page_stride;
  OPENMSA_DEVICE bool exists() const { return data != nullptr; }
};

/// topk_indices [num_heads_kv][total_q][topk].
struct SelectionView {
  std::int32_t* data;  // nullptr: absent
  std::int64_t strides[3];

  /// Slot 0 of a query row; slots are strides[2] apart.
  OPENMSA_DEVICE std::int32_t* row(std::int32_t head, std::int32_t query) const {
    return data + head * strides[0] + query * strides[1];
  }
};

/// candidates [num_heads_kv][total_q][topk].
struct CandidateView {
  Ranked* data;  // nullptr: absent
  std::int64_t strides[3];

  /// Slot 0 of a query row; slots are strides[2] apart.
  OPENMSA_DEVICE Ranked* row(std::int32_t head, std::int32_t query) const {
    return data + head * strides[0] + query * strides[1];
  }
};

/// block_scores [num_heads_kv][total_q][columns].
struct ScoreView {
  float* data;  // nullptr: absent
  std::int64_t strides[3];

  OPENMSA_DEVICE float* row(std::int32_t head, std::int32_t query) const {
    return data + head * strides[0] + query * strides[1];
  }
};

/// Rows of q or index_q [total_q][heads][dim].
struct QueryRows {
  const void* data;
  std::int64_t strides[2];
};

/// Rows of index_q [total_q][heads][index_dim], and how they meet index keys in e4m3 (openmsa.h, "fp8 keys").
struct IndexQueryRows {
  const void* data;
  std::int64_t strides[2];
  openmsa_index_q_rounding rounding;
  bool is_e4m3;  // already
};

/// o [total_q][num_heads_q][head_dim] and lse [total_q][num_heads_q], natural logarithm.
struct OutputRows {
  void* o;
  std::int64_t o_strides[2];
  float* lse;  // nullptr: not wanted
  std::int64_t lse_strides[2];
  bool is_fp32;  // o; otherwise the plan's dtype
};

}  // namespace openmsa::cuda
