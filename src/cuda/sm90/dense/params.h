// Dense attention: parameters of its kernels.
#pragma once

#include <vector_types.h>

#include <cstdint>

#include "cuda/common/query_tile.h"
#include "cuda/common/tensor_view.h"
#include "cuda/sm90/decode/params.h"

namespace openmsa::cuda::sm90::dense {

inline constexpr std::int32_t kPromptRows = 128;  // (query, head) rows of a tile: two warpgroups
inline constexpr std::int32_t kPromptKeys = 128;  // keys of a key tile

/// Many query tokens per sequence.
struct PromptParams {
  BatchView batch;
  BatchIndex index;           // of tiles of tile_queries
  std::int32_t tile_queries;  // kPromptRows / group_size
  std::int32_t heads;         // KV heads
  std::int32_t log2_group_size;
  std::int32_t key_box_rows;
  float scale_log2;         // softmax_scale * log2(e)
  std::int32_t* next_tile;  // [1] 0 before: the next one that a CTA takes
  OutputRows out;
};

/// Few query tokens per sequence.
struct DecodeParams : decode::AttendParams {
  std::int32_t tile_queries;  // of an item (split.h)
  std::int32_t ctas;
  float* partial_o;        // [ctas][kSlots][16 * tile_queries][head_dim], not normalised
  float2* partial_weight;  // [ctas][kSlots][16 * tile_queries]: maximum in units of log2, sum
};

}  // namespace openmsa::cuda::sm90::dense
