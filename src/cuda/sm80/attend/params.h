// Attention: parameters of the kernels.
#pragma once

#include <cstdint>

#include "cuda/common/query_range.h"
#include "cuda/common/tensor_view.h"
#include "cuda/generic/schedule/params.h"
#include "cuda/sm80/tile/keys.h"

namespace openmsa::cuda::sm80::attend {

using generic::kMaxTileQueries;
using generic::KvOuterItem;
using generic::ScheduleBatch;
using generic::ScheduleParams;
using generic::SharedBlock;
using generic::Visit;

/// (query, head) rows of a tile of a prompt: two tiles of 16 for each of its 4 warps.
inline constexpr int kPromptWarps = 4, kWarpTiles = 2, kPromptRows = 16 * kWarpTiles * kPromptWarps;

/// Visits of an item of kv_outer, at most: about kItemVisits, in whole tiles of 4 to 64 (generic::KvOuterBlock).
inline constexpr int kMostVisits = 128;
static_assert(kMostVisits % 64 == 0 && generic::kItemVisits <= kMostVisits);

/// What all kernels read and write.
struct AttentionTensors {
  QueryRows q;
  KeyTensor k, v;
  TokenScale k_scale, v_scale;  // of e4m3 keys and values
  OutputRows out;
  float scale_log2;  // softmax_scale * log2(e)
};

/// Prompts. Without a selection every query of a tile sees all kv_blocks.
struct PromptParams : ScheduleParams {
  AttentionTensors tensors;
  std::int32_t heads;  // KV heads
  bool is_dense;
};

/// Row of the partial result of a slot of a query and head of tile `number`.
OPENMSA_DEVICE std::int32_t partial_row(const ScheduleBatch& work, std::int32_t number, std::int32_t slot,
                                        std::int32_t query, std::int32_t head, std::int32_t log2_group_size) {
  return (((number * work.slots + slot) * work.tile_queries + query) << log2_group_size) + head;
}

/// Schedule batches that one launch works off side by side, a row of CTAs each: heads of a call that leaves SMs idle.
inline constexpr int kBatchesTogether = 4;
struct PromptBatches {
  PromptParams of[kBatchesTogether];
};

/// Few query tokens per sequence.
struct DecodeParams {
  BatchView batch;
  QueryRange served;
  AttentionTensors tensors;
  SelectionView topk_indices;
  std::int32_t topk;  // 0: all keys
  std::int32_t heads;
  std::int32_t log2_group_size;
  std::int32_t splits;     // parts of a row's keys
  float* partial_o;        // [rows][heads][splits][16][head_dim], not normalised; unused with one split
  float2* partial_weight;  // [rows][heads][splits][16] maximum in units of log2, and sum

  /// Place of a part's result, of 16 rows each.
  OPENMSA_DEVICE std::int64_t part(std::int32_t row, std::int32_t head, std::int32_t split) const {
    return (std::int64_t{row} * heads + head) * splits + split;
  }
};

}  // namespace openmsa::cuda::sm80::attend
