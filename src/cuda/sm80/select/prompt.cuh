// Index branch of prompts: scores, maxima over kv_blocks and the choice in one pass over the keys; no score is stored.
//
// A CTA has a tile of (query, head) rows, 32 (or 16) for each of its 8 warps, in registers as the left operand. All
// threads load stages of 128 keys into a ring; every warp multiplies its rows with all of them, 32 keys at a time, and
// takes maxima straight from the accumulators:
//
//   m[row, b] = max over j in kv_block b of index_q[row] . index_k[j]
//
// The maxima of a kv_block's 32 rows are exchanged so that each lane has the one of the row that it keeps the list of.
//
//   wait           waits for                             guards
//   async_wait     this thread's copies of a stage       (with the barrier) the stage has arrived
//   __syncthreads  all warps, once per stage             the stage before has been read and may be loaded again
#pragma once

#include "cuda/common/grid_dependency.cuh"
#include "cuda/sm80/select/epilogue.cuh"
#include "cuda/sm80/select/index_product.cuh"
#include "cuda/sm80/select/load_stage.cuh"

namespace openmsa::cuda::sm80::select {

template <class Cached, int kDim, int kCapacity_>
struct PromptConfig {
  using Product = IndexProduct<Cached, kDim>;
  static constexpr int kCapacity = kCapacity_;
  static constexpr int kProducts = warp_products(kCapacity);  // of 16 rows, of a warp
  static constexpr int kHeld = 2 * kProducts;                 // rows whose scores a thread holds
  static constexpr int kThreads = 32 * kPromptWarps;
  static constexpr int kStageKeys = 128;
  static constexpr int kRunKeys = 64;   // in one piece of code: the smallest kv_block
  static constexpr int kStepKeys = 32;  // whose scores are in registers at a time
  using Stage = KeyStage<Product, kStageKeys>;
  static constexpr int kStages = 3;
  static_assert(kStages * sizeof(Stage) <= kSharedBytes);
};

/// Key stages [begin, end) of an item: those that hold a kv_block which competes for some query of the tile.
struct StageRange {
  int begin, end;
};

template <class Config>
__device__ __forceinline__ StageRange stage_range(const SelectParams& p, const QueryTile& tile, int split, int splits) {
  const int last = tile.position + tile.count - 1, log2_block = log2_of(p.rules.block_size);
  const bool wants_scores = Config::kCapacity == kNoList;
  const int visible = last < 0 ? 0 : (last >> log2_block) + 1;
  const int blocks = wants_scores ? visible : Candidates(p.rules, last).end;
  const int stages = ((blocks << log2_block) + Config::kStageKeys - 1) / Config::kStageKeys;
  return {static_cast<int>(static_cast<std::int64_t>(stages) * split / splits),
          static_cast<int>(static_cast<std::int64_t>(stages) * (split + 1) / splits)};
}

/// From the maxima of each lane's own columns to those of whole rows: afterwards lane i of a quad has the one of row
/// i, held row i of all its lanes.
template <int kHeld>
__device__ __forceinline__ float exchange_max(const float (&top)[kHeld], int lane) {
  const bool is_odd = lane & 1, is_upper = lane & 2;
  float low = is_odd ? top[1] : top[0], other = is_odd ? top[0] : top[1];
  low = fmaxf(low, __shfl_xor_sync(kFullWarp, other, 1));
  if constexpr (kHeld == 2) {
    return fmaxf(low, __shfl_xor_sync(kFullWarp, low, 2));
  } else {
    float high = is_odd ? top[3] : top[2];
    other = is_odd ? top[2] : top[3];
    high = fmaxf(high, __shfl_xor_sync(kFullWarp, other, 1));
    const float mine = is_upper ? high : low, theirs = is_upper ? low : high;
    return fmaxf(mine, __shfl_xor_sync(kFullWarp, theirs, 2));
  }
}

/// Scores of a step, [16-key groups][products][column tiles].
template <class Config>
using StepScores = float[Config::kStepKeys / 16][Config::kProducts][2][4];

/// Queries of a warp.
template <class Config>
using StepQueries = std::uint32_t[Config::kProducts][Config::Product::kSteps][4];

/// The score of held row `row` with column i of this thread's kStepKeys / 4.
template <class Config>
__device__ __forceinline__ float& held_score(StepScores<Config>& scores, int row, int i) {
  return scores[i / 4][row / 2][i / 2 % 2][row % 2 * 2 + i % 2];
}

/// Multiplies scores by the scales of their keys.
template <class Config>
__device__ __forceinline__ void scale_columns(StepScores<Config>& scores, const float* scales, int lane) {
#pragma unroll
  for (int i = 0; i < Config::kStepKeys / 4; ++i) {
    const float scale = scales[i / 2 * 8 + lane % 4 * 2 + i % 2];
#pragma unroll
    for (int row = 0; row < Config::kHeld; ++row) held_score<Config>(scores, row, i) *= scale;
  }
}

/// Raises the maxima of the held rows to the scores of the kStepKeys keys from row `key` of a stage on, of which held row
/// i sees the first seen[i]. NaN loses to every number.
template <class Config, bool kIsMasked>
__device__ __forceinline__ void add_step(const SelectParams& p, const StepQueries<Config>& q,
                                         const typename Config::Stage& stage, int key, const int (&seen)[Config::kHeld],
                                         float (&top)[Config::kHeld], int lane) {
  using Product = typename Config::Product;
  StepScores<Config> scores = {};
  Product::add(q, shared_address(stage.keys), key, scores, lane);
  if constexpr (Product::kIsQuantized) {
    if (p.index_k_scale.is_per_token()) scale_columns<Config>(scores, stage.scales + key, lane);
  }
#pragma unroll
  for (int row = 0; row < Config::kHeld; ++row) {
#pragma unroll
    for (int i = 0; i < Config::kStepKeys / 4; ++i) {
      const bool counts = !kIsMasked || i / 2 * 8 + lane % 4 * 2 + i % 2 < seen[row];
      top[row] = fmaxf(top[row], counts ? held_score<Config>(scores, row, i) : NAN);
    }
  }
}

/// Rows of a warp's tile.
template <class Config>
struct WarpRows {
  int first, lane;  // first of the warp

  /// Held row i of this thread: product i / 2, upper or lower half i % 2.
  __device__ __forceinline__ int held(int i) const { return first + i / 2 * 16 + i % 2 * 8 + lane / 4; }
  __device__ __forceinline__ bool owns_one() const { return lane % 4 < Config::kHeld; }
  __device__ __forceinline__ int owned() const { return held(lane % 4 % Config::kHeld); }
};

/// One item: a tile's queries against a part of its keys.
template <class Config>
__device__ __forceinline__ void select_item(const SelectParams& p, typename Config::Stage* stages, WorkItem item,
                                            int splits) {
  using Product = typename Config::Product;
  constexpr int kHeld = Config::kHeld, kStageKeys = Config::kStageKeys, kStepKeys = Config::kStepKeys;
  constexpr int kRunKeys = Config::kRunKeys;
  const int thread = threadIdx.x, lane = thread % 32;
  const WarpRows<Config> rows{thread / 32 * 16 * Config::kProducts, lane};
  const QueryTile tile = find_tile(p.batch, p.index, item.tile, p.queries_per_tile);
  const StageRange range = stage_range<Config>(p, tile, item.split, splits);
  const SequenceKeys keys{&p.batch, tile.sequence, tile.view.k_row, tile.view.seqlen_k};
  const auto load = [&](int stage) {
    if (stage < range.end) {
      load_stage<Config::kThreads>(p, keys, stage * Config::kStageKeys, stages[stage % Config::kStages], thread);
    }
    async_commit();
  };
#pragma unroll
  for (int i = 0; i < Config::kStages - 1; ++i) load(range.begin + i);

  StepQueries<Config> q;
  OwnedRow owned{};
#pragma unroll
  for (int i = 0; i < Config::kHeld; ++i) {
    const int row = rows.held(i), query = row / p.heads, head = row % p.heads;
    const int q_row = tile.q_row + min(query, tile.count - 1);
    const float unit = Product::load_query(p, q_row, head, i % 2, q[i / 2], lane);
    if (rows.owns_one() && row == rows.owned()) {
      const bool exists = query < min(tile.count, p.queries_per_tile);
      owned = {exists, tile.position + query, q_row, head, row, unit};
    }
  }
  TopkEpilogue<Config::kCapacity> epilogue(p, owned);

  const int log2_block = log2_of(p.rules.block_size), last_of_block = p.rules.block_size - 1;
  float top[kHeld];
  int seen[kHeld];
#pragma unroll 1
  for (int stage = range.begin; stage < range.end; ++stage) {
    async_wait<Config::kStages - 2>();
    __syncthreads();
    load(stage + Config::kStages - 1);
    const typename Config::Stage& now = stages[stage % Config::kStages];
#pragma unroll 1
    for (int from = 0; from < kStageKeys; from += kRunKeys) {
      const int first_key = stage * kStageKeys + from;
      if ((first_key & last_of_block) == 0) {
#pragma unroll
        for (float& maximum : top) maximum = NAN;
      }
      if (tile.position + 1 >= first_key + kRunKeys) {  // all rows see them
#pragma unroll 1
        for (int key = 0; key < kRunKeys; key += kStepKeys) {
          add_step<Config, false>(p, q, now, from + key, seen, top, lane);
        }
      } else {
#pragma unroll
        for (int i = 0; i < kHeld; ++i) seen[i] = tile.position + rows.held(i) / p.heads + 1 - first_key;
#pragma unroll 1
        for (int key = 0; key < kRunKeys; key += kStepKeys) {
          add_step<Config, true>(p, q, now, from + key, seen, top, lane);
#pragma unroll
          for (int& keys_left : seen) keys_left -= kStepKeys;
        }
      }
      if ((first_key + kRunKeys & last_of_block) == 0) {
        float score = exchange_max(top, lane);
        if (Product::kIsQuantized && p.index_block_scale.exists()) score *= now.scales[from >> log2_block];
        epilogue.take(p, score, first_key >> log2_block);
      }
    }
  }
  epilogue.finish(p, owned, item, splits);
  async_wait<0>();
  __syncthreads();
}

/// Items, long tiles first: they are at the ends of sequences. CTAs take one in each round; rounds go to and fro, so
/// that whoever had a longer tile has a shorter one next.
template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 1) prompt_kernel(const __grid_constant__ SelectParams p) {
  extern __shared__ __align__(kTileAlignment) char shared[];
  auto* const stages = reinterpret_cast<typename Config::Stage*>(shared);
  wait_for_earlier_kernels();
  const int tiles = p.num_tiles(), splits = p.splits(), items = tiles * splits;
  for (int round = 0; round * static_cast<int>(gridDim.x) < items; ++round) {
    const int cta = round % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x, number = round * gridDim.x + cta;
    if (number >= items) break;
    select_item<Config>(p, stages, {tiles - 1 - number / splits, number % splits}, splits);
  }
}

}  // namespace openmsa::cuda::sm80::select
