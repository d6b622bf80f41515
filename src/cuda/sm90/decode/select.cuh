// The index branch of a decode step (eq.: m[i,b,r] = max_j index_q[i,r] . index_k[j], the best k of each segment).
//
// A block walks along its segments (split.h). One warp streams pieces of 64 index keys; the others multiply them with
// the (query, head) rows of the query tile, keys as the rows of the product and queries as its columns, which they keep
// in registers: 8 columns, or 16 of 32 or 64. Groups of warps that share out all columns take the pieces in turn, so
// that a warp's waits fall together with another's products. The maximum over a piece goes to a board in shared memory,
// and when the board is full or the segment ends, warps pick the best candidates of each row.
//
//   barrier     arrivals                      waited on by   guards
//   full[i]     producer + bytes of the keys  one group      keys of stage i have arrived
//               (+ 32 lanes where keys have scales)
//   empty[i]    one lane of each warp of      producer       its group is done with stage i
//               the group
//   named 1     all consumers                 the same       the board has been written / has been read
//
// Bound by memory: a piece of 16 KB takes an SM about 900 cycles of its share of the bandwidth; products with it take
// one warp 300 to 600 cycles, of which three groups (8 rows), four (32 rows) or two (64 rows) work side by side.
#pragma once

#include <cutlass/arch/barrier.h>

#include "cuda/sm90/decode/page_loads.cuh"
#include "cuda/sm90/decode/params.h"
#include "cuda/sm90/decode/query_fragments.cuh"
#include "cuda/sm90/decode/walk.cuh"
#include "cuda/sm90/tile/barrier.cuh"
#include "cuda/sm90/tile/warp_mma.cuh"
#include "cuda/sm90/topk/best_list.cuh"

namespace openmsa::cuda::sm90 {

/// Query_: element type of index_q in memory; Key_: of the keys and of the product.
template <class Query_, class Key_, int kDim_, int kRows_>
struct DecodeSelectConfig {
  using Query = Query_;
  using Key = Key_;
  static constexpr int kDim = kDim_;
  static constexpr int kRows = kRows_;  // (query, head) rows of a tile

  static constexpr int kRowBytes = kDim * static_cast<int>(sizeof(Key));
  static constexpr int kSteps = kRowBytes / kStepBytes;
  static constexpr bool kIsQuantized = sizeof(Key) == 1;
  using Tile = SwizzledTile<kPieceKeys, kRowBytes>;

  // Few rows leave room for a block of the attention, which then waits on the same SM: shared memory and registers.
  static constexpr bool kIsSmall = kRows == kDecodeFewRows;
  static constexpr int kConsumers = !kIsSmall ? 8 : kIsQuantized ? 6 : 3;  // warps
  static constexpr int kThreads = 32 * (kConsumers + 1);
  static constexpr int kColumns = kIsSmall ? 8 : 16;  // of a warp
  static constexpr int kColumnTiles = kColumns / 8;
  static constexpr int kGroupWarps = kRows / kColumns;
  static constexpr int kGroups = kConsumers / kGroupWarps;
  using Queries = QueryFragments<Key, kSteps, kColumnTiles>;

  static constexpr int kStageBytes = kPieceKeys * kRowBytes;
  static constexpr int kStages = ((kIsSmall ? 96 : 128) << 10) / (kStageBytes < 8192 ? 8192 : kStageBytes);
  static_assert(kStages % kGroups == 0, "a stage belongs to one group: nobody else may fall rounds behind");
  static constexpr int kBoardPieces = 64;
  static constexpr int kListCapacity = kIsSmall ? 64 : 128;  // twice topk, or more

  struct Storage {
    alignas(1024) char k[kStages][kStageBytes];
    alignas(16) float k_scale[kStages][kPieceKeys];
    float board[kRows][kBoardPieces];
    alignas(16) Ranked lists[kRows][kListCapacity];
    int list_sizes[kRows];
    std::uint64_t full[kStages], empty[kStages];
  };
};

inline constexpr int kTilePieces = kKeyTile / kPieceKeys;

template <class Config>
__device__ __forceinline__ void produce_index_keys(const DecodeSelectParams& p, const CUtensorMap& map_k,
                                                   typename Config::Storage& storage, int lane) {
  RingPosition<Config::kStages> ring;
  SegmentWalk walk(p, lane);
  Segment segment;
  while (walk.next(segment)) {
    PageWindow pages(p.batch, segment.sequence, segment.view.seqlen_k, lane);
    for (int piece = segment.begin * kTilePieces; piece < segment.end * kTilePieces; ++piece, ring.advance()) {
      const std::int32_t first = piece * kPieceKeys;
      const std::int32_t used = max(0, min(kPieceKeys, segment.view.seqlen_k - first));
      const int count = p.batch.page_size == 0 ? 1 : (used + p.key_box_rows - 1) >> log2_of(p.key_box_rows);
      const KeyBox box = key_box(p.batch, segment.view, pages, first, p.key_box_rows, count, lane);
      std::uint64_t* const full = &storage.full[ring.stage];
      EmptyBarrier::wait(&storage.empty[ring.stage], ring.parity ^ 1);
      if (lane == 0) {
        FullBarrier::arrive_and_expect_tx(full, count * p.key_box_rows * Config::kRowBytes);
      }
      __syncwarp();
      if (box.exists) {
        char* const to = storage.k[ring.stage] + lane * p.key_box_rows * Config::Tile::kPanelBytes;
        load_box<Config::Tile, typename Config::Key>(map_k, full, to, 0, box);
      }
      if (Config::kIsQuantized && p.index_k_scale.is_per_token()) {
        load_box_scales<kPieceKeys>(p.batch, segment.view, p.index_k_scale, 0, box, first, p.key_box_rows,
                                    storage.k_scale[ring.stage], full, lane);
      }
    }
  }
}

/// Maxima over the keys of a stage: top[n][c] of this warp's column 8 n + 2 t + c, in every lane of the same t. Keys
/// from `limits` of a column on do not count; a column without a number gets NaN.
template <class Config>
__device__ __forceinline__ void piece_max(const typename Config::Storage& storage, int stage,
                                          const typename Config::Queries& q,
                                          const int (&limits)[Config::kColumnTiles][2], bool all_visible, bool scaled,
                                          float (&top)[Config::kColumnTiles][2], int lane) {
  constexpr int kTiles = Config::kColumnTiles;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) top[n][0] = NAN, top[n][1] = NAN;
#pragma unroll
  for (int key = 0; key < kPieceKeys; key += 16) {
    float acc[kTiles][4] = {};
#pragma unroll
    for (int step = 0; step < Config::kSteps; ++step) {
      std::uint32_t keys[4];
      Config::Tile::load(storage.k[stage], key, step * kStepBytes, lane, keys);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        warp_mma<typename Config::Key>(acc[n], keys, q.fragments[step][2 * n], q.fragments[step][2 * n + 1]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // acc[n][i]: key g + 8 (i / 2), column 2 t + i % 2
      const int at = key + lane / 4 + i / 2 * 8;
      const float scale = Config::kIsQuantized && scaled ? storage.k_scale[stage][at] : 1;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const float score = Config::kIsQuantized ? acc[n][i] * scale : acc[n][i];
        const bool counts = all_visible || at < limits[n][i % 2];
        top[n][i % 2] = fmaxf(top[n][i % 2], counts ? score : NAN);
      }
    }
  }
#pragma unroll
  for (int distance = 4; distance < 32; distance *= 2) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) top[n][c] = fmaxf(top[n][c], __shfl_xor_sync(kFullWarp, top[n][c], distance));
    }
  }
}

/// Offers the board's scores, those of key tiles [begin, begin + tiles) of the segment, to the lists of this warp's
/// rows, and writes the lists out when the segment ends.
template <class Config>
__device__ __forceinline__ void take_board(const DecodeSelectParams& p, typename Config::Storage& storage,
                                           const Segment& segment, int kept, int begin, int tiles, int warp, int lane) {
  const int log2_pieces = log2_of(p.rules.block_size) - log2_of(kPieceKeys);  // of a kv_block
  const int blocks_per_tile = kTilePieces >> log2_pieces;
  const int queries = min(p.tile_queries, segment.view.seqlen_q - segment.first_query);
  const bool is_first = begin == segment.begin, is_last = begin + tiles == segment.end;
  const bool keeps_all = is_first && is_last && tiles * blocks_per_tile <= kept;
  for (int row = warp; row < queries * p.heads; row += Config::kConsumers) {
    const int position = segment.view.seqlen_k - segment.view.seqlen_q + segment.first_query + row / p.heads;
    const Candidates candidates(p.rules, position);
    const auto ranked = [&](int at) {  // the board's `at`-th kv_block; kNoCandidate where it does not compete
      const int block = begin * blocks_per_tile + at, first = at << log2_pieces;
      if (first >= tiles * kTilePieces || block < candidates.init || block >= candidates.end) return kNoCandidate;
      float score = storage.board[row][first];
      if (log2_pieces > 0) score = fmaxf(score, storage.board[row][first + 1]);
      return rank_of(score, block);
    };
    Ranked* const to = p.lists.row(segment.range, row, kept) + segment.number * kept;
    if (keeps_all) {
      for (int i = lane; i < kept; i += 32) to[i] = ranked(i);
      continue;
    }
    BestList<Config::kListCapacity> best(storage.lists[row], kept, lane);
    if (!is_first) best.resume(storage.list_sizes[row]);
    for (int first = 0; first < tiles * blocks_per_tile; first += 32) {
      const Ranked candidate = ranked(first + lane);
      best.offer(candidate != kNoCandidate, candidate);
    }
    if (best.size() > kept || !is_last) best.keep_best();
    if (!is_last) {
      storage.list_sizes[row] = best.size();
      continue;
    }
    for (int i = lane; i < kept; i += 32) to[i] = i < best.size() ? best.at(i) : kNoCandidate;
  }
}

template <class Config>
__device__ __forceinline__ void consume_index_keys(const DecodeSelectParams& p, typename Config::Storage& storage,
                                                   int warp, int lane) {
  constexpr int kBoardTiles = Config::kBoardPieces / kTilePieces;
  const int first_column = warp % Config::kGroupWarps * Config::kColumns;
  int turn = warp / Config::kGroupWarps;  // pieces until this warp's next one
  RingPosition<Config::kStages> ring;
  SegmentWalk walk(p, lane);
  Segment segment;
  while (walk.next(segment)) {
    const std::int32_t first_row = segment.view.q_row + segment.first_query;
    const int queries = min(p.tile_queries, segment.view.seqlen_q - segment.first_query);
    const int first_position = segment.view.seqlen_k - segment.view.seqlen_q + segment.first_query;

    typename Config::Queries q;
    q.load(static_cast<const typename Config::Query*>(p.index_q), lane, [&](int column) {
      const int row = min(first_column + column, queries * p.heads - 1);  // rows past the tile repeat the last one
      return (first_row + row / p.heads) * p.q_row_stride + row % p.heads * p.q_head_stride;
    });
    int limits[Config::kColumnTiles][2];  // keys that each column of the product sees
#pragma unroll
    for (int i = 0; i < 2 * Config::kColumnTiles; ++i) {
      const int row = first_column + i / 2 * 8 + lane % 4 * 2 + i % 2;
      limits[i / 2][i % 2] = first_position + row / p.heads + 1;
    }

    for (int begin = segment.begin; begin < segment.end; begin += kBoardTiles) {
      const int tiles = min(kBoardTiles, segment.end - begin);
      for (int i = 0; i < tiles * kTilePieces; ++i, ring.advance()) {
        if (turn-- > 0) continue;
        turn = Config::kGroups - 1;
        const int first_key = begin * kKeyTile + i * kPieceKeys;
        int left[Config::kColumnTiles][2];
#pragma unroll
        for (int j = 0; j < 2 * Config::kColumnTiles; ++j) left[j / 2][j % 2] = limits[j / 2][j % 2] - first_key;
        float top[Config::kColumnTiles][2];
        FullBarrier::wait(&storage.full[ring.stage], ring.parity);
        piece_max<Config>(storage, ring.stage, q, left, first_key + kPieceKeys <= first_position + 1,
                          p.index_k_scale.is_per_token(), top, lane);
        if (lane == 0) EmptyBarrier::arrive(&storage.empty[ring.stage]);
        if (lane < 4) {
#pragma unroll
          for (int j = 0; j < 2 * Config::kColumnTiles; ++j) {
            storage.board[first_column + j / 2 * 8 + lane * 2 + j % 2][i] = top[j / 2][j % 2];
          }
        }
      }
      cutlass::arch::NamedBarrier::sync(32 * Config::kConsumers, 1);
      take_board<Config>(p, storage, segment, walk.kept(), begin, tiles, warp, lane);
      cutlass::arch::NamedBarrier::sync(32 * Config::kConsumers, 1);
    }
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kIsSmall ? 4 : 1)
    decode_select_kernel(const __grid_constant__ DecodeSelectParams p, const __grid_constant__ CUtensorMap map_k) {
  extern __shared__ char raw[];
  auto& storage = shared_storage<typename Config::Storage>(raw);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    cute::prefetch_tma_descriptor(&map_k);
    init_ring(storage.full, storage.empty, Config::kGroupWarps, p.index_k_scale.is_per_token() ? 33 : 1);
    cutlass::arch::fence_barrier_init();
  }
  __syncthreads();
  cudaGridDependencySynchronize();
  cudaTriggerProgrammaticLaunchCompletion();
  if (warp == Config::kConsumers) {
    produce_index_keys<Config>(p, map_k, storage, lane);
  } else {
    consume_index_keys<Config>(p, storage, warp, lane);
  }
}

}  // namespace openmsa::cuda::sm90
