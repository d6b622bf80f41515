// Where a row's block scores go: into a top-k list, or to a row of block_scores.
#pragma once

#include "cuda/common/topk_key.cuh"
#include "cuda/generic/topk/topk_list.cuh"
#include "cuda/sm80/select/params.h"

namespace openmsa::cuda::sm80::select {

/// A tile, and a part of its keys.
struct WorkItem {
  int tile, split;
};

/// The (query, head) row that a thread owns.
struct OwnedRow {
  bool exists;
  int position;
  int q_row;
  int head;
  int at;      // of its tile
  float unit;  // what index_q was divided by
};

template <int kCapacity>
struct TopkEpilogue {
  generic::TopkList<kCapacity> list;
  Candidates candidates;
  bool owns;

  __device__ __forceinline__ TopkEpilogue(const SelectParams& p, const OwnedRow& row)
      : candidates(p.rules, row.position), owns(row.exists) {
    list.clear();
  }
  __device__ __forceinline__ void take(const SelectParams&, float score, int block) {
    if (owns && block >= candidates.init && block < candidates.end) list.offer(score_key(score), block);
  }
  __device__ __forceinline__ void finish(const SelectParams& p, const OwnedRow& row, WorkItem item, int splits) {
    if (!owns) return;
    if (splits == 1) {
      list.write(candidates, p.rules.topk, p.topk_indices.row(row.head, row.q_row), p.topk_indices.strides[2]);
      return;
    }
    Ranked* const to = p.partial_list(item.tile, splits, item.split, row.at, kCapacity);
#pragma unroll
    for (int i = 0; i < kCapacity; ++i) {
      to[i] = list.keys[i] == list.kEmpty ? kNoCandidate : rank_of_key(list.keys[i], list.blocks[i]);
    }
  }
};

template <>
struct TopkEpilogue<kNoList> {
  int visible;  // kv_blocks of the row
  float* out;
  float scale;

  __device__ __forceinline__ TopkEpilogue(const SelectParams& p, const OwnedRow& row)
      : visible(0), out(nullptr), scale(p.index_scale * row.unit) {
    if (!row.exists) return;
    visible = row.position < 0 ? 0 : (row.position >> log2_of(p.rules.block_size)) + 1;
    out = p.block_scores.row(row.head, row.q_row);
    if (p.index_k_scale.is_for_all()) scale *= *p.index_k_scale.data;
  }
  __device__ __forceinline__ void take(const SelectParams& p, float score, int block) {
    if (block < visible) out[block * p.block_scores.strides[2]] = score * scale;
  }
  __device__ __forceinline__ void finish(const SelectParams& p, const OwnedRow& row, WorkItem, int) {
    if (!row.exists) return;
    for (int block = visible; block < p.score_columns; ++block) out[block * p.block_scores.strides[2]] = -INFINITY;
  }
};

}  // namespace openmsa::cuda::sm80::select
