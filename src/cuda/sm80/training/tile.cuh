// Products of training: 128 keys of a kv_block, 16 for each of 8 warps, against a tile of 32 rows of queries. Everything
// with keys as rows of the product stays in the registers of the warp that has the keys; what is summed over keys goes
// through shared memory:
//
//   s  [16 keys][32 rows]  = keys rows^T             keys from shared memory or registers, rows from shared memory
//   d  [16 keys][kDim]    += scores rows             scores from registers
//   d_q[32 rows][kDim]     = scores^T keys           both from shared memory; a warp has 16 rows and a quarter of kDim
//
// A lane, 4 g + t, holds keys g and g + 8 of its warp's, columns 8 n + 2 t and 8 n + 2 t + 1.
#pragma once

#include "cuda/generic/training/teacher.h"
#include "cuda/sm80/tile/element.cuh"
#include "cuda/sm80/tile/load_keys.cuh"
#include "cuda/sm80/tile/row_fragment.cuh"
#include "cuda/sm80/tile/shared_tile.cuh"

namespace openmsa::cuda::sm80::training {

using generic::training::kTileKeys;
inline constexpr int kWarps = 8, kThreads = 32 * kWarps;
inline constexpr int kWarpKeys = kTileKeys / kWarps;
inline constexpr int kTileRows = 32;
static_assert(kWarpKeys == 16);

template <class Element_, int kDim_>
struct TrainingTile {
  using Element = Element_;
  static constexpr int kDim = kDim_, kRowBytes = kDim * 2, kSteps = kDim / 16;
  using Rows = SharedTile<kRowBytes>;           // of keys and of queries
  using ScoreTile = SharedTile<kTileRows * 2>;  // scores [kTileKeys][kTileRows]
  static constexpr int kScoreBytes = kTileKeys * kTileRows * 2;
  using KeyOperand = std::uint32_t[kSteps][4];
  using Scores = float[kTileRows / 8][4];
  using RoundedScores = std::uint32_t[kTileRows / 16][4];
  using KeyGradients = float[kDim / 8][4];
  static constexpr int kOwnColumns = kDim / 32;  // tiles of 8 channels of a warp's part of d_q
  using RowGradients = float[kOwnColumns][4];

  /// s = keys rows^T; operand(step, a): the warp's keys, channels [16 step, 16 step + 16).
  template <class Operand>
  static __device__ __forceinline__ void multiply_rows(const Operand& operand, std::uint32_t rows, Scores& s,
                                                       int lane) {
#pragma unroll
    for (int i = 0; i < kTileRows / 2; ++i) s[i / 4][i % 4] = 0;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      std::uint32_t a[4];
      operand(step, a);
#pragma unroll
      for (int row = 0; row < kTileRows; row += 16) {
        std::uint32_t b[4];
        Rows::load_columns(rows, row, 2 * step, lane, b);
        multiply_add<Element>(s[row / 8], a, b[0], b[1]);
        multiply_add<Element>(s[row / 8 + 1], a, b[2], b[3]);
      }
    }
  }
  static __device__ __forceinline__ void multiply_rows(const KeyOperand& keys, std::uint32_t rows, Scores& s,
                                                       int lane) {
    const auto from_registers = [&](int step, std::uint32_t(&a)[4]) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = keys[step][i];
    };
    multiply_rows(from_registers, rows, s, lane);
  }
  /// Of keys in a tile in shared memory.
  static __device__ __forceinline__ void multiply_rows(std::uint32_t keys, std::uint32_t rows, Scores& s, int warp,
                                                       int lane) {
    const auto from_shared = [&](int step, std::uint32_t(&a)[4]) {
      Rows::load(keys, warp * kWarpKeys, 2 * step, lane, a);
    };
    multiply_rows(from_shared, rows, s, lane);
  }

  /// Scores as the left operand of a product over rows.
  static __device__ __forceinline__ void round(const Scores& s, RoundedScores& rounded) {
#pragma unroll
    for (int i = 0; i < kTileRows / 4; ++i)
      rounded[i / 4][i % 4] = pack<Element>(s[i / 2][i % 2 * 2], s[i / 2][i % 2 * 2 + 1]);
  }

  /// d += scores rows.
  static __device__ __forceinline__ void add_key_gradients(const RoundedScores& scores, std::uint32_t rows,
                                                           KeyGradients& d, int lane) {
#pragma unroll
    for (int step = 0; step < kTileRows / 16; ++step) {
#pragma unroll
      for (int n = 0; n < kDim / 8; n += 2) {
        std::uint32_t b[4];
        Rows::load_transposed(rows, step * 16, n, lane, b);
        multiply_add<Element>(d[n], scores[step], b[0], b[1]);
        multiply_add<Element>(d[n + 1], scores[step], b[2], b[3]);
      }
    }
  }

  /// Stores the warp's scores into the tile of all.
  static __device__ __forceinline__ void store_scores(const RoundedScores& scores, char* tile, int warp, int lane) {
#pragma unroll
    for (int i = 0; i < kTileRows / 4; ++i) {  // scores[.][i % 4]: of keys g and g + 8 in turn, then of the next 8 rows
      const int key = warp * kWarpKeys + i % 2 * 8 + lane / 4;
      *reinterpret_cast<std::uint32_t*>(tile + ScoreTile::offset(key, i / 2) + lane % 4 * 4) = scores[i / 4][i % 4];
    }
  }

  /// The warp's rows of d_q, and its channels.
  static __device__ __forceinline__ int own_row(int warp) { return warp % 2 * 16; }
  static __device__ __forceinline__ int own_channel(int warp) { return warp / 2 * (kDim / 4); }

  /// d = scores^T keys over all keys.
  static __device__ __forceinline__ void multiply_keys(std::uint32_t scores, std::uint32_t keys, RowGradients& d,
                                                       int warp, int lane) {
#pragma unroll
    for (int i = 0; i < 4 * kOwnColumns; ++i) d[i / 4][i % 4] = 0;
#pragma unroll 1
    for (int key = 0; key < kTileKeys; key += 16) {
      std::uint32_t x[4];
      ScoreTile::load_transposed(scores, key, own_row(warp) / 8, lane, x);
      const std::uint32_t a[4] = {x[0], x[2], x[1], x[3]};
#pragma unroll
      for (int n = 0; n < kOwnColumns; n += 2) {
        std::uint32_t b[4];
        Rows::load_transposed(keys, key, own_channel(warp) / 8 + n, lane, b);
        multiply_add<Element>(d[n], a, b[0], b[1]);
        multiply_add<Element>(d[n + 1], a, b[2], b[3]);
      }
    }
  }
};

/// Whether none of eight elements is NaN or infinite: their exponents are not all ones.
template <class Element>
__device__ __forceinline__ bool is_finite(const uint4& chunk) {
  constexpr std::uint32_t kExponent = std::is_same_v<Element, __half> ? 0x7c00u : 0x7f80u;
  bool finite = true;
#pragma unroll
  for (const std::uint32_t two : {chunk.x, chunk.y, chunk.z, chunk.w}) {
    finite &= (two & kExponent) != kExponent && (two >> 16 & kExponent) != kExponent;
  }
  return finite;
}

/// Chunks of a tile of `rows` rows that are not finite become 0; every thread looks after those that it loaded, if it
/// loaded them in the order of load_keys or load_rows.
template <class Tile, int kRows>
__device__ __forceinline__ void clear_what_is_not_finite(char* tile, int thread) {
  constexpr int kChunks = Tile::Rows::kChunks;
#pragma unroll 1
  for (int row = thread / kChunks; row < kRows; row += kThreads / kChunks) {
    uint4& chunk = *reinterpret_cast<uint4*>(tile + Tile::Rows::offset(row, thread % kChunks));
    if (!is_finite<typename Tile::Element>(chunk)) chunk = uint4{0, 0, 0, 0};
  }
}

/// The sequence of an item, with no key after its kv_block.
__device__ __forceinline__ SequenceKeys keys_of(const BatchView& batch, const generic::ListItem& item) {
  const SequenceView view = batch.sequence(item.sequence);
  return {&batch, item.sequence, view.k_row, min(view.seqlen_k, (item.block + 1) * batch.block_size)};
}

/// Position of query row 0 among the keys of the item's kv_block: row i sees the first i + this + 1 of them.
__device__ __forceinline__ std::int32_t first_position(const BatchView& batch, const generic::ListItem& item) {
  const SequenceView view = batch.sequence(item.sequence);
  return view.seqlen_k - view.seqlen_q - view.q_row - item.block * batch.block_size;
}

/// Keys [first, first + kTileKeys) of one head as rows of a tile, by all threads; zeros after `end`. Once per item:
/// addresses row by row cost less than the registers that those of load_keys keep.
template <class Tile>
__device__ __noinline__ void load_item_keys(const SequenceKeys& keys, const KeyTensor& tensor, std::int32_t head,
                                            std::int32_t first, std::uint32_t tile, int thread) {
  constexpr int kChunks = Tile::Rows::kChunks;
#pragma unroll
  for (int row = thread / kChunks; row < kTileKeys; row += kThreads / kChunks) {
    const std::int32_t key = first + row;
    const bool exists = key < keys.end;
    const char* const from = keys.row(tensor, head, exists ? key : 0) + thread % kChunks * 16;
    async_copy_16(tile + Tile::Rows::offset(row, thread % kChunks), from, exists);
  }
}

/// The warp's keys of an item as a left operand, straight from memory; zeros where there are none.
template <class Tile>
__device__ __forceinline__ void load_key_operand(const SequenceKeys& keys, const KeyTensor& tensor, std::int32_t head,
                                                 std::int32_t first, typename Tile::KeyOperand& operand, int lane) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const std::int32_t key = first + i * 8 + lane / 4;
    const bool exists = key < keys.end;
    load_row<Tile::kDim>(keys.row(tensor, head, exists ? key : 0), i, operand, lane);
#pragma unroll
    for (int step = 0; step < Tile::kSteps; ++step) {
      if (!exists) operand[step][i] = operand[step][2 + i] = 0;
    }
  }
}

}  // namespace openmsa::cuda::sm80::training
