// Index branch of decode: block scores of few query tokens against all keys of their sequences, to memory.
//
// The kv_blocks of all sequences, put end to end, are shared out evenly over the CTAs of the grid. A CTA goes along its
// share, a run of kv_blocks of one sequence after the other, and for each query tile of the sequence streams stages of
// 64 or 128 keys. Each of its 4 warps multiplies 16 of every 64 keys with all rows of the tile: up to 64, which lie in
// shared memory as fragments, or up to 8, which stay in registers as the maxima of a kv_block do.
//
//   wait           waits for                             guards
//   async_wait     this thread's copies of a stage       (with the barrier) the stage has arrived
//   __syncthreads  all warps, once per stage             the stage before has been read and may be loaded again; the
//                                                        maxima of all warps over a kv_block are complete
//
// Bound by memory: keys are read once, as long as a sequence has one tile of queries.
#pragma once

#include "cuda/common/find_sequence.cuh"
#include "cuda/common/grid_dependency.cuh"
#include "cuda/sm80/select/index_product.cuh"
#include "cuda/sm80/select/load_stage.cuh"

namespace openmsa::cuda::sm80::select {

template <class Cached, int kDim>
struct DecodeConfig {
  using Product = IndexProduct<Cached, kDim>;
  static constexpr int kWarps = 4, kThreads = 32 * kWarps;
  static constexpr int kPartKeys = 16 * kWarps;  // that all warps multiply at a time
  static constexpr int kStageKeys = Product::kRowBytes == 256 ? kPartKeys : 2 * kPartKeys;
  static constexpr int kRowTiles = kDecodeRows / 16;
  using Stage = KeyStage<Product, kStageKeys>;
  static constexpr int kStages = 3;
  static constexpr int kHeldMaxima = 4;  // kv_blocks of the stage at work, and of the one before
  struct Storage {
    Stage stages[kStages];
    uint4 q[kRowTiles][Product::kSteps][32];  // fragments of each lane
    float maxima[kHeldMaxima][kWarps][kDecodeRows];
  };
  static_assert(sizeof(Storage) <= kSharedBytes);
};

/// kv_blocks [begin, end) of a sequence.
struct BlockRun {
  std::int32_t sequence;
  std::int32_t begin, end;
};

/// Products of a warp's 16 keys with a tile of 16 rows; a thread has columns 2 t, 2 t + 1 of 8, and rows g and g + 8.
template <class Config>
struct KeyScores {
  using Product = typename Config::Product;
  float scores[2][4] = {};

  __device__ __forceinline__ void add(const uint4& q, const std::uint32_t (&keys)[4]) {
    const std::uint32_t a[4] = {q.x, q.y, q.z, q.w};
    multiply_add<typename Product::Product>(scores[0], a, keys[0], keys[1]);
    multiply_add<typename Product::Product>(scores[1], a, keys[2], keys[3]);
  }
  /// The largest score of row `half` among this thread's keys from `key` on that lie before `limit`.
  __device__ __forceinline__ float max(int half, const float (&scale)[4], int key, int limit) const {
    float top = NAN;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float score = scores[i / 2][half * 2 + i % 2] * scale[i];
      top = fmaxf(top, key + i / 2 * 8 + i % 2 < limit ? score : NAN);  // NaN loses to every number
    }
    return top;
  }
};

/// Scores of a run's kv_blocks for the queries of one tile, which has at most 8 rows if kIsFew.
template <class Config, bool kIsFew>
__device__ __forceinline__ void score_run(const SelectParams& p, typename Config::Storage& storage, const BlockRun& run,
                                          const QueryTile& tile, std::int32_t tile_number) {
  using Product = typename Config::Product;
  constexpr int kStageKeys = Config::kStageKeys, kPartKeys = Config::kPartKeys, kHeldMaxima = Config::kHeldMaxima;
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const SequenceKeys keys{&p.batch, tile.sequence, tile.view.k_row, tile.view.seqlen_k};
  const int log2_block = log2_of(p.rules.block_size), last_of_block = p.rules.block_size - 1;
  const int begin = run.begin << log2_block, end = run.end << log2_block;  // keys
  const int stages = (end - begin + kStageKeys - 1) / kStageKeys;
  const auto load = [&](int stage) {
    if (stage < stages) {
      load_stage<Config::kThreads>(p, keys, begin + stage * kStageKeys, storage.stages[stage % Config::kStages],
                                   thread);
    }
    async_commit();
  };
#pragma unroll
  for (int i = 0; i < Config::kStages - 1; ++i) load(i);

  const int rows = tile.count * p.heads, row_tiles = kIsFew ? 1 : (rows + 15) / 16;
  uint4 few[Product::kSteps];
  for (int m = kIsFew ? 0 : warp; m < row_tiles; m += Config::kWarps) {
    std::uint32_t q[Product::kSteps][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = min(m * 16 + half * 8 + lane / 4, rows - 1);
      Product::load_query(p, tile.q_row + row / p.heads, row % p.heads, half, q, lane);
    }
#pragma unroll
    for (int step = 0; step < Product::kSteps; ++step) {
      const uint4 fragment = make_uint4(q[step][0], q[step][1], q[step][2], q[step][3]);
      if (kIsFew) {
        few[step] = fragment;
      } else {
        storage.q[m][step][lane] = fragment;
      }
    }
  }

  const auto store_scores = [&](int block) {  // whose maxima are complete
    for (int row = thread; row < rows; row += Config::kThreads) {
      float score = NAN;
#pragma unroll
      for (int w = 0; w < Config::kWarps; ++w) score = fmaxf(score, storage.maxima[block % kHeldMaxima][w][row]);
      p.score_row(tile, tile_number, row)[block] = score;
    }
  };
  int stored = run.begin;  // kv_blocks before it are in memory
  float top = NAN;         // of a kv_block, where rows are few
  const int limit = tile.position + lane / 4 / p.heads + 1;
#pragma unroll 1
  for (int stage = 0; stage < stages; ++stage) {
    async_wait<Config::kStages - 2>();
    __syncthreads();
    load(stage + Config::kStages - 1);
    const typename Config::Stage& now = storage.stages[stage % Config::kStages];
    const int first_key = begin + stage * kStageKeys;
    for (; stored < first_key >> log2_block; ++stored) store_scores(stored);
#pragma unroll
    for (int part = 0; part < kStageKeys; part += kPartKeys) {
      const int first = first_key + part, block = first >> log2_block;
      if (part > 0 && first >= end) break;
      const bool is_first = (first & last_of_block) == 0, is_last = (first + kPartKeys & last_of_block) == 0;
      const int mine = part + warp * 16, key = first + warp * 16 + lane % 4 * 2;  // first of this thread's
      float scale[4] = {1, 1, 1, 1};
      if constexpr (Product::kIsQuantized) {
        if (p.index_k_scale.is_per_token()) {
#pragma unroll
          for (int i = 0; i < 4; ++i) scale[i] = now.scales[mine + lane % 4 * 2 + i / 2 * 8 + i % 2];
        } else if (p.index_block_scale.exists()) {
#pragma unroll
          for (float& one : scale) one = now.scales[part >> log2_block];
        }
      }
      std::uint32_t b[Product::kSteps / Product::kTogether][Product::kTogether][4];
#pragma unroll
      for (int i = 0; i < Product::kSteps / Product::kTogether; ++i) {
        Product::load_keys(shared_address(now.keys), mine, i * Product::kTogether, b[i], lane);
      }
      const auto keys_of = [&](int step) -> const std::uint32_t(&)[4] {
        return b[step / Product::kTogether][step % Product::kTogether];
      };
      if constexpr (kIsFew) {
        KeyScores<Config> scores;
#pragma unroll
        for (int step = 0; step < Product::kSteps; ++step) scores.add(few[step], keys_of(step));
        const float best = scores.max(0, scale, key, limit);
        top = is_first ? best : fmaxf(top, best);
        if (is_last) {
          const float maximum = quad_max(top);
          if (lane % 4 == 0) storage.maxima[block % kHeldMaxima][warp][lane / 4] = maximum;
        }
      } else {
#pragma unroll 1
        for (int m = 0; m < row_tiles; ++m) {
          KeyScores<Config> scores;
#pragma unroll
          for (int step = 0; step < Product::kSteps; ++step) scores.add(storage.q[m][step][lane], keys_of(step));
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int row = m * 16 + half * 8 + lane / 4;
            const float best = quad_max(scores.max(half, scale, key, tile.position + row / p.heads + 1));
            float& maximum = storage.maxima[block % kHeldMaxima][warp][row];
            if (lane % 4 == 0) maximum = is_first ? best : fmaxf(maximum, best);
          }
        }
      }
    }
  }
  async_wait<0>();
  __syncthreads();
  for (; stored < run.end; ++stored) store_scores(stored);
  __syncthreads();
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, kScoreCtasPerSm)
    score_kernel(const __grid_constant__ SelectParams p) {
  extern __shared__ __align__(kTileAlignment) char shared[];
  auto& storage = *reinterpret_cast<typename Config::Storage*>(shared);
  wait_for_earlier_kernels();
  const std::int32_t* const first_block = p.index.blocks;
  const std::int64_t blocks = first_block[p.batch.batch], ctas = gridDim.x;
  auto begin = static_cast<std::int32_t>(blocks * blockIdx.x / ctas);
  const auto end = static_cast<std::int32_t>(blocks * (blockIdx.x + 1) / ctas);
  while (begin < end) {
    const std::int32_t sequence =
        find_sequence_together({first_block, 1}, p.batch.batch, begin, static_cast<int>(threadIdx.x % 32));
    const std::int32_t before = first_block[sequence], run_end = min(end, first_block[sequence + 1]);
    for (std::int32_t tile = p.index.tiles[sequence]; tile < p.index.tiles[sequence + 1]; ++tile) {
      const QueryTile queries = find_tile(p.batch, p.index, tile, p.queries_per_tile);
      const BlockRun run{sequence, begin - before, run_end - before};
      if (queries.count * p.heads <= 8) {
        score_run<Config, true>(p, storage, run, queries, tile);
      } else {
        score_run<Config, false>(p, storage, run, queries, tile);
      }
    }
    begin = run_end;
  }
}

}  // namespace openmsa::cuda::sm80::select
