// Decode: parameters of the kernels for few query tokens per sequence.
#pragma once

#include <cstdint>

#include "cuda/common/batch_view.h"
#include "cuda/common/selection.h"
#include "cuda/common/token_scale.h"
#include "cuda/sm90/decode/split.h"

namespace openmsa::cuda::sm90 {

/// (query, head) rows of a query tile of the index branch: the fewest that hold those of a sequence. The smallest tile
/// serves short lists only.
inline constexpr int kDecodeTileRows[] = {8, 32, 64};
inline constexpr int kDecodeFewRows = kDecodeTileRows[0];
inline constexpr int kDecodeFewTopk = 32;
/// Query tokens of each sequence, on average, of the calls that decode kernels serve.
inline constexpr int kDecodeQueries = 16;
/// Queries of a cluster of attention blocks, at most.
inline constexpr int kClusterQueries = 4;
/// Keys that a block takes at a time, of the index branch and of the attention.
inline constexpr int kPieceKeys = 64;
/// Index keys of a stage: fp8 has more of them in as many bytes.
constexpr int decode_stage_keys(bool is_fp8) { return is_fp8 ? 2 * kPieceKeys : kPieceKeys; }
inline constexpr unsigned int kMaxClusterBlocks = 16;
inline constexpr unsigned int kPortableClusterBlocks = 8;  // what every device can schedule
/// Blocks of the index branch: one per SM, of which Hopper has up to 144.
inline constexpr int kMaxSplitBlocks = 144;

/// A candidate: score and kv_block as one number (topk/best_list.cuh).
using Ranked = long long;

/// What the segments of the index branch leave for the choice of the kv_blocks.
struct CandidateLists {
  Ranked* ranked;  // of each query tile [tile_rows][segments][kept], one tile behind the other
  std::int32_t tile_rows;
  std::int32_t blocks;  // of the grid of the index branch

  /// Candidates of a row from all segments of its query tile; those of segment first + i begin at i * kept.
  OPENMSA_DEVICE Ranked* row(const SegmentRange& range, std::int32_t row, std::int32_t kept) const {
    return ranked + (std::int64_t{range.first} * tile_rows + row * range.count) * kept;
  }
};

struct DecodeSelectParams {
  BatchView batch;
  SelectionRules rules;
  std::int32_t heads;
  std::int32_t tile_queries;  // queries of a tile: tile_queries * heads rows
  CandidateLists lists;

  const void* index_q;  // [total_q][heads][index_dim]
  std::int64_t q_row_stride;
  std::int64_t q_head_stride;
  std::int32_t key_box_rows;
  TokenScale index_k_scale;

  std::int32_t* topk_indices;  // [heads][total_q][topk]; nullptr: not wanted
  std::int64_t topk_strides[3];
};

struct DecodeAttendParams {
  DecodeSelectParams select;  // the selection that follows from lists; without lists topk_indices are read
  std::int32_t cluster_queries;
  std::int32_t log2_group_size;
  std::int32_t key_box_rows;
  float scale_log2;  // softmax_scale * log2(e)
  TokenScale k_scale;
  TokenScale v_scale;

  const void* q;  // [total_q][num_heads_q][head_dim]
  std::int64_t q_strides[2];
  void* o;
  std::int64_t o_strides[2];
  float* lse;  // [total_q][num_heads_q]; nullptr: not wanted
  std::int64_t lse_strides[2];
};

}  // namespace openmsa::cuda::sm90
