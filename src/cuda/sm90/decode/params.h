// Decode: parameters of the kernels for few query tokens per sequence.
#pragma once

#include <cstdint>

#include "cuda/common/batch_view.h"
#include "cuda/common/query_range.h"
#include "cuda/common/selection.h"
#include "cuda/common/tensor_view.h"
#include "cuda/sm90/decode/split.h"

namespace openmsa::cuda::sm90::decode {

/// Keys that a warpgroup of the index branch multiplies at a time, and that a CTA of the attention takes at a time.
inline constexpr int kTileKeys = 64;

/// Scores of kv_blocks on their way from the index branch to the choice: m[i,b,r], NaN where no key counts. Those of
/// kv_blocks that do not compete for query i may be missing.
struct ScoreRows {
  float* data;               // [rows][heads][blocks]; null: there is no index branch
  std::int64_t blocks;       // of a row, a multiple of 4
  std::int32_t of_sequence;  // rows of each sequence of the batch; 0: as many as it has queries, one after the other

  /// Of query `query` of a sequence.
  OPENMSA_DEVICE float* row(std::int32_t sequence, const SequenceView& view, std::int32_t query, std::int32_t head,
                            std::int32_t heads) const {
    const std::int64_t row = of_sequence == 0 ? view.q_row + query : std::int64_t{sequence} * of_sequence + query;
    return data + (row * heads + head) * blocks;
  }
};

/// Sequences up to which a warp has the batch in its lanes.
inline constexpr std::int32_t kLaneSequences = 32;

/// Prefix sums over the sequences of a larger batch, [batch + 1] each: what comes before a sequence, and in all. Made by
/// index_sequences, where somebody asks for them.
struct SequenceIndex {
  std::int32_t* units;   // key units of all query tiles
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
  std::int32_t tile_rows;      // (query, head) rows of a tile of the index branch
  ScoreRows scores;

  std::int32_t table_pages;  // columns of block_table
  IndexQueryRows index_q;
  std::int32_t key_box_rows;
  TokenScale index_k_scale;
  BlockScale index_block_scale;

  SelectionView topk_indices;
  CandidateView candidates;  // instead of these
};

OPENMSA_DEVICE bool is_indexed(const SelectParams& p) { return p.index.units != nullptr; }

struct AttendParams {
  SelectParams select;  // the selection that follows from scores; without scores topk_indices are read
  std::int32_t log2_group_size;
  std::int32_t key_box_rows;
  float scale_log2;  // softmax_scale * log2(e)
  TokenScale k_scale;
  TokenScale v_scale;

  QueryRows q;  // [total_q][num_heads_q][head_dim]
  OutputRows out;
};

}  // namespace openmsa::cuda::sm90::decode
