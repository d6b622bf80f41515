// Decode: parameters of the kernels for few query tokens per sequence.
#pragma once

#include <cstdint>

#include "cuda/common/batch_view.h"
#include "cuda/common/query_range.h"
#include "cuda/common/selection.h"
#include "cuda/common/tensor_view.h"
#include "cuda/common/topk_key.h"
#include "cuda/sm90/decode/split.h"

namespace openmsa::cuda::sm90::decode {

/// Keys that a warpgroup of the index branch multiplies at a time, and that a CTA of the attention takes at a time.
inline constexpr int kTileKeys = 64;
/// Index keys of a stage: fp8 has more of them in as many bytes.
constexpr int decode_stage_keys(bool is_fp8) { return is_fp8 ? 2 * kTileKeys : kTileKeys; }

/// Candidates that the segments of the index branch leave for the choice of the kv_blocks.
struct CandidateLists {
  Ranked* ranked;  // of each query tile [tile_rows][segments][kept], one tile after the other
  std::int32_t tile_rows;
  std::int32_t ctas;  // of the grid of the index branch

  /// Candidates of a row from all segments of its query tile; those of segment first + i begin at i * kept.
  OPENMSA_DEVICE Ranked* row(const SegmentRange& range, std::int32_t row, std::int32_t kept) const {
    return ranked + (std::int64_t{range.first} * tile_rows + row * range.count) * kept;
  }
};

/// Sequences up to which a warp has the batch in its lanes.
inline constexpr std::int32_t kLaneSequences = 32;

/// Prefix sums over the sequences of a larger batch, [batch + 1] each: what comes before a sequence, and in all. Made by
/// index_sequences, where somebody asks for them.
struct SequenceIndex {
  std::int32_t* units;   // key units of all query tiles
  std::int32_t* tiles;   // query tiles
  std::int32_t* groups;  // of group_queries query rows
};

struct SelectParams {
  BatchView batch;
  QueryRange served;
  SelectionRules rules;
  std::int32_t heads;
  std::int32_t tile_queries;   // queries of a tile: tile_queries * heads rows
  std::int32_t group_queries;  // query rows that are attended to together
  SequenceIndex index;         // null: not needed
  CandidateLists lists;

  std::int32_t table_keys;  // of a row of block_table
  IndexQueryRows index_q;
  std::int32_t key_box_rows;
  TokenScale index_k_scale;
  BlockScale index_block_scale;

  SelectionView topk_indices;
  CandidateView candidates;  // instead of these
};

OPENMSA_DEVICE bool is_indexed(const SelectParams& p) { return p.index.units != nullptr; }

struct AttendParams {
  SelectParams select;  // the selection that follows from lists; without lists topk_indices are read
  std::int32_t log2_group_size;
  std::int32_t key_box_rows;
  float scale_log2;  // softmax_scale * log2(e)
  TokenScale k_scale;
  TokenScale v_scale;

  QueryRows q;  // [total_q][num_heads_q][head_dim]
  OutputRows out;
  const char* warm[2];
  std::int64_t warm_stride;
};

}  // namespace openmsa::cuda::sm90::decode
