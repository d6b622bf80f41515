// Where a row's block scores go: into a top-k list, from there to topk_indices or candidates; or to a row of
// block_scores.
#pragma once

#include "cuda/common/topk_key.cuh"
#include "cuda/generic/topk/topk_list.cuh"
#include "cuda/generic/topk/write_candidates.cuh"
#include "cuda/sm90/prefill/select/params.h"

namespace openmsa::cuda::sm90::prefill {

/// A tile, and a part of its keys.
struct WorkItem {
  int tile, split;

  __device__ __forceinline__ bool exists() const { return tile >= 0; }
};

/// A row's list, complete, to topk_indices or to candidates.
template <class List>
__device__ __forceinline__ void write_list(const SelectParams& p, const List& list, const Candidates& rules,
                                           std::int32_t head, std::int32_t row) {
  if (p.candidates.data == nullptr) {
    list.write(rules, p.rules.topk, p.topk_indices.row(head, row), p.topk_indices.strides[2]);
  } else {
    list.write_candidates(rules.slots, generic::CandidateRow{p.candidates.row(head, row), p.candidates.strides[2],
                                                             p.rules.topk, p.rules.shard});
  }
}

template <class Config>
struct TopkEpilogue {
  generic::TopkList<Config::kCapacity> list;
  Candidates candidates;
  bool owns;

  __device__ __forceinline__ TopkEpilogue(const SelectParams& p, int position, bool owns)
      : candidates(Candidates(p.rules, position).of_shard(p.rules.shard)), owns(owns) {
    list.clear();
  }
  __device__ __forceinline__ void take(const SelectParams&, float score, int block) {
    if (owns && block >= candidates.init && block < candidates.end) list.offer(score_key(score), block);
  }
  /// row: of q; at: of the tile.
  __device__ __forceinline__ void finish(const SelectParams& p, int row, int head, int at, WorkItem item, int splits) {
    if (!owns) return;
    if (splits == 1) return write_list(p, list, candidates, head, row);
    Ranked* const to = p.partial_lists + partial_list(p, item.tile, splits, item.split, at, Config::kCapacity);
#pragma unroll
    for (int i = 0; i < Config::kCapacity; ++i) {
      to[i] = list.keys[i] == list.kEmpty ? kNoCandidate : rank_of_key(list.keys[i], list.blocks[i]);
    }
  }
};

template <class Config>
struct ScoreEpilogue {
  int visible;  // kv_blocks of the row
  float* out;
  float scale;
  bool owns;

  __device__ __forceinline__ ScoreEpilogue(const SelectParams& p, int position, bool owns)
      : visible(position < 0 ? 0 : position / Config::kBlock + 1), out(nullptr), scale(p.index_scale), owns(owns) {}
  __device__ __forceinline__ void begin(const SelectParams& p, int row, int head, float q_scale) {
    out = p.block_scores.row(head, row);
    if (!Config::kIsQuantized) return;
    scale *= q_scale;
    if (p.index_k_scale.is_for_all()) scale *= *p.index_k_scale.data;
  }
  __device__ __forceinline__ void take(const SelectParams& p, float score, int block) {
    if (owns && block < visible) out[block * p.block_scores.strides[2]] = score * scale;
  }
  __device__ __forceinline__ void finish(const SelectParams& p, int, int, int, WorkItem, int) {
    if (!owns) return;
    for (int block = visible; block < p.score_columns; ++block) out[block * p.block_scores.strides[2]] = -INFINITY;
  }
};

}  // namespace openmsa::cuda::sm90::prefill
