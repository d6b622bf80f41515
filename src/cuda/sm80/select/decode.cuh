// Index branch of decode: block scores of few query tokens against all keys of their sequences, to memory.
//
// The kv_blocks of all sequences, put end to end, are shared out evenly over the CTAs of the grid. A CTA goes along its
// share, a run of kv_blocks of one sequence after the other, and for each query tile of the sequence streams stages of
// 64 keys. Each of its 4 warps multiplies 16 keys of a stage with all rows of the tile, up to 64, which lie in shared
// memory as fragments.
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
  static constexpr int kStageKeys = 64;
  static_assert(kStageKeys == 16 * kWarps);
  static constexpr int kRowTiles = kDecodeRows / 16;
  using Stage = KeyStage<Product, kStageKeys>;
  static constexpr int kStages = Product::kRowBytes == 256 ? 4 : 6;
  struct Storage {
    Stage stages[kStages];
    uint4 q[kRowTiles][Product::kSteps][32];  // fragments of each lane
    float maxima[2][kWarps][kDecodeRows];     // of the kv_block at work, and of the one before
  };
  static_assert(sizeof(Storage) <= kSharedBytes);
};

/// kv_blocks [begin, end) of a sequence.
struct BlockRun {
  std::int32_t sequence;
  std::int32_t begin, end;
};

/// Scores of a run's kv_blocks for the queries of one tile.
template <class Config>
__device__ __forceinline__ void score_run(const SelectParams& p, typename Config::Storage& storage, const BlockRun& run,
                                          std::int32_t tile_number) {
  using Product = typename Config::Product;
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const QueryTile tile = find_tile(p.batch, p.index, tile_number, p.queries_per_tile);
  const SequenceKeys keys{&p.batch, tile.sequence, tile.view.k_row, tile.view.seqlen_k};
  const int log2_stages = log2_of(p.rules.block_size) - log2_of(Config::kStageKeys);  // of a kv_block
  const int first_key = run.begin << log2_of(p.rules.block_size), stages = (run.end - run.begin) << log2_stages;
  const auto load = [&](int stage) {
    if (stage < stages) {
      load_stage<Config::kThreads>(p, keys, first_key + stage * Config::kStageKeys,
                                   storage.stages[stage % Config::kStages], thread);
    }
    async_commit();
  };
#pragma unroll
  for (int i = 0; i < Config::kStages - 1; ++i) load(i);

  const int rows = tile.count * p.heads, row_tiles = (rows + 15) / 16;
  for (int m = warp; m < row_tiles; m += Config::kWarps) {
    std::uint32_t q[Product::kSteps][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = min(m * 16 + half * 8 + lane / 4, rows - 1);
      Product::load_query(p, tile.q_row + row / p.heads, row % p.heads, half, q, lane);
    }
#pragma unroll
    for (int step = 0; step < Product::kSteps; ++step) {
      storage.q[m][step][lane] = make_uint4(q[step][0], q[step][1], q[step][2], q[step][3]);
    }
  }

  const auto store_scores = [&](int block) {  // of the run, whose maxima are complete
    for (int row = thread; row < rows; row += Config::kThreads) {
      float score = NAN;
#pragma unroll
      for (int w = 0; w < Config::kWarps; ++w) score = fmaxf(score, storage.maxima[block % 2][w][row]);
      p.score_row(tile, tile_number, row)[run.begin + block] = score;
    }
  };
#pragma unroll 1
  for (int stage = 0; stage < stages; ++stage) {
    async_wait<Config::kStages - 2>();
    __syncthreads();
    load(stage + Config::kStages - 1);
    const int block = stage >> log2_stages;
    const bool is_first = stage == block << log2_stages;
    if (is_first && block > 0) store_scores(block - 1);

    const typename Config::Stage& now = storage.stages[stage % Config::kStages];
    std::uint32_t b[Product::kSteps][4];
    Product::load_keys(shared_address(now.keys), warp * 16, b, lane);
    const int key = first_key + stage * Config::kStageKeys + warp * 16 + lane % 4 * 2;  // first of this thread's
    float scale[2][2] = {{1, 1}, {1, 1}};
    if constexpr (Product::kIsQuantized) {
      if (p.index_k_scale.is_per_token()) {
#pragma unroll
        for (int i = 0; i < 4; ++i) scale[i / 2][i % 2] = now.scales[warp * 16 + lane % 4 * 2 + i / 2 * 8 + i % 2];
      } else if (p.index_block_scale.exists()) {
#pragma unroll
        for (int i = 0; i < 4; ++i) scale[i / 2][i % 2] = now.scales[0];
      }
    }
#pragma unroll 1
    for (int m = 0; m < row_tiles; ++m) {
      float scores[2][4] = {};
#pragma unroll
      for (int step = 0; step < Product::kSteps; ++step) {
        const uint4 packed = storage.q[m][step][lane];
        const std::uint32_t a[4] = {packed.x, packed.y, packed.z, packed.w};
        multiply_add<typename Product::Product>(scores[0], a, b[step][0], b[step][2]);
        multiply_add<typename Product::Product>(scores[1], a, b[step][1], b[step][3]);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = m * 16 + half * 8 + lane / 4, limit = tile.position + row / p.heads + 1;
        float top = NAN;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float score = scores[i / 2][half * 2 + i % 2] * scale[i / 2][i % 2];
          top = fmaxf(top, key + i / 2 * 8 + i % 2 < limit ? score : NAN);  // NaN loses to every number
        }
        top = quad_max(top);
        float& maximum = storage.maxima[block % 2][warp][row];
        if (lane % 4 == 0) maximum = is_first ? top : fmaxf(maximum, top);
      }
    }
  }
  async_wait<0>();
  __syncthreads();
  store_scores(run.end - run.begin - 1);
  __syncthreads();
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, kScoreCtasPerSm)
    score_kernel(const __grid_constant__ SelectParams p) {
  extern __shared__ __align__(128) char shared[];
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
      score_run<Config>(p, storage, {sequence, begin - before, run_end - before}, tile);
    }
    begin = run_end;
  }
}

}  // namespace openmsa::cuda::sm80::select
