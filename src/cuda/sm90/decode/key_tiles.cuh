// The key tiles of a CTA: one warp loads k and v of each, the others attend to them.
#pragma once

#include "cuda/common/math.h"
#include "cuda/sm90/decode/group_attention.cuh"
#include "cuda/sm90/decode/tile_scheduler.cuh"
#include "cuda/sm90/decode/warp_attention.cuh"
#include "cuda/sm90/tile/page_loads.cuh"
#include "cuda/sm90/tile/pipeline.cuh"

namespace openmsa::cuda::sm90::decode {

/// The key tiles of the union (of the sequence, where attention is dense), 64 keys each, of which this CTA takes every `step`-th from `begin` on.
struct KeyTiles {
  std::int32_t begin, end, step;
  std::int32_t shift;  // 2^shift key tiles are a kv_block
};

template <class Config>
__device__ __forceinline__ std::int32_t chosen_tile_key(const typename Config::Storage& storage, const KeyTiles& tiles,
                                                        std::int32_t tile) {
  const std::int32_t within = tile & ((1 << tiles.shift) - 1);
  return ((storage.blocks()[tile >> tiles.shift] << tiles.shift) + within) * kTileKeys;
}

/// The first key of a key tile.
template <class Config>
__device__ __forceinline__ std::int32_t tile_key(const typename Config::Storage& storage, const KeyTiles& tiles,
                                                 std::int32_t tile) {
  if constexpr (Config::kIsDense) {
    return tile * kTileKeys;
  } else {
    return chosen_tile_key<Config>(storage, tiles, tile);
  }
}

template <class Config>
__device__ __forceinline__ void produce_key_tiles(const AttendParams& p, const CUtensorMap& map_k,
                                                  const CUtensorMap& map_v, typename Config::Storage& storage,
                                                  const QueryPart& part, const KeyTiles& tiles, std::int32_t head,
                                                  PipelineState<Config::kStages>& ring, int lane) {
  using Tile = typename Config::Tile;
  const BatchView& batch = p.select.batch;
  const int log2_boxes = log2_of(kTileKeys) - log2_of(p.key_box_rows), boxes = 1 << log2_boxes;
  const int ahead = 32 >> log2_boxes;  // key tiles whose pages are looked up at once
  for (std::int32_t first = tiles.begin; first < tiles.end; first += ahead * tiles.step) {
    const std::int32_t mine = first + (lane >> log2_boxes) * tiles.step;
    std::int32_t page_ahead = 0;
    if (batch.page_size != 0 && mine < tiles.end) {
      const std::int32_t key = tile_key<Config>(storage, tiles, mine) + (lane & (boxes - 1)) * p.key_box_rows;
      if (key < part.view.seqlen_k) page_ahead = batch.page(part.sequence, key >> log2_of(batch.page_size));
    }
    for (int i = 0; i < ahead && first + i * tiles.step < tiles.end; ++i) {
      const std::int32_t key = tile_key<Config>(storage, tiles, first + i * tiles.step);
      const std::int32_t page = __shfl_sync(kFullWarp, page_ahead, (i << log2_boxes) + min(lane, boxes - 1));
      const std::int32_t used = min(kTileKeys, part.view.seqlen_k - key);
      if (used <= 0) continue;
      const int count = batch.page_size == 0 ? 1 : (used + p.key_box_rows - 1) >> log2_of(p.key_box_rows);
      const std::int32_t token = key + lane * p.key_box_rows;
      const KeyBox box{lane < count, batch.page_size == 0 ? part.view.k_row + key : token & (batch.page_size - 1),
                       page};
      std::uint64_t* const full = &storage.full[ring.stage];
      EmptyBarrier::wait(&storage.empty[ring.stage], ring.phase ^ 1);
      if (lane == 0) FullBarrier::arrive_and_expect_tx(full, 2 * count * p.key_box_rows * Config::kRowBytes);
      __syncwarp();
      if (box.exists) {
        const int to = lane * p.key_box_rows * Tile::kPanelBytes;
        load_box<Tile, typename Config::Cached>(map_k, full, storage.stages[ring.stage].k + to, head, box);
        load_box<Tile, typename Config::Cached>(map_v, full, storage.stages[ring.stage].v + to, head, box);
      }
      if (lane == 0 && first == tiles.begin && i == 0) STAMP(1, ring.stamp_n, 3);
      if (lane == 0) STAMP(1, ring.stamp_n, 11);
      if constexpr (Config::kIsQuantized) {
        if (p.k_scale.is_per_token()) {
          load_box_scales<kTileKeys>(batch, part.view, p.k_scale, head, box, key, p.key_box_rows,
                                     storage.k_scale[ring.stage], full, lane);
        }
        if (p.v_scale.is_per_token()) {
          load_box_scales<kTileKeys>(batch, part.view, p.v_scale, head, box, key, p.key_box_rows,
                                     storage.v_scale[ring.stage], full, lane);
        }
      }
      ring.advance();
    }
  }
}

/// Whether a query of the part attends to a key tile, as far as it sees it.
template <class Config>
__device__ __forceinline__ bool is_tile_of_query(const typename Config::Storage& storage, const QueryPart& part,
                                                 const KeyTiles& tiles, std::int32_t tile, int query) {
  if constexpr (Config::kIsDense) {
    return query < part.count;
  } else {
    return (storage.united.members[tile >> tiles.shift] >> query & 1) != 0;
  }
}

template <class Config>
__device__ __forceinline__ void consume_key_tiles(const AttendParams& p, typename Config::Storage& storage,
                                                  const QueryPart& part, const KeyTiles& tiles, std::int32_t head,
                                                  PipelineState<Config::kStages>& ring,
                                                  WarpAttention<Config>& attention, int warp, int lane) {
  const int query = warp / Config::kKeySlices, slice_key = warp % Config::kKeySlices * Config::kSliceKeys;
  std::uint32_t q[Config::kDim / 16][4];
  float scale_log2[2];
  load_query<Config>(p, part.row + min(query, part.count - 1), head, lane, q, scale_log2);
  const bool has_scale = Config::kIsQuantized && p.k_scale.is_for_all();
#pragma unroll
  for (float& scale : scale_log2) scale *= has_scale ? p.scale_log2 * *p.k_scale.data : p.scale_log2;

  for (std::int32_t tile = tiles.begin; tile < tiles.end; tile += tiles.step) {
    const std::int32_t key = tile_key<Config>(storage, tiles, tile);
    if (key >= part.view.seqlen_k) continue;
    const bool is_member = is_tile_of_query<Config>(storage, part, tiles, tile, query);
    const int end = is_member ? part.position + query + 1 - key : 0;
    FullBarrier::wait(&storage.full[ring.stage], ring.phase);
#pragma unroll 1
    for (int chunk = slice_key; chunk < min(end, slice_key + Config::kSliceKeys); chunk += Config::kChunkKeys) {
      attention.add(storage, ring.stage, chunk, q, end, p, scale_log2, lane);
    }
    __syncwarp();
    if (lane == 0) EmptyBarrier::arrive(&storage.empty[ring.stage]);
    ring.advance();
  }
}

/// The same for one query, by a warpgroup.
template <class Config>
__device__ __forceinline__ void consume_key_tiles(const AttendParams& p, typename Config::Storage& storage,
                                                  const QueryPart& part, const KeyTiles& tiles,
                                                  PipelineState<Config::kStages>& ring,
                                                  GroupAttention<Config>& attention, int warp, int lane) {
  attention.begin(p, storage.group, lane);
  for (std::int32_t tile = tiles.begin; tile < tiles.end; tile += tiles.step) {
    const std::int32_t key = tile_key<Config>(storage, tiles, tile);
    if (key >= part.view.seqlen_k) continue;
    const int end = part.position + 1 - key;
    FullBarrier::wait(&storage.full[ring.stage], ring.phase);
    if (threadIdx.x == 0 && tile == tiles.begin) STAMP(1, ring.stamp_n, 4);
    if (threadIdx.x == 0 && tile == tiles.begin + 3 * tiles.step) STAMP(1, ring.stamp_n, 5);
    if (threadIdx.x == 0) STAMP(1, ring.stamp_n, 10);
    if (end > 0) attention.add(storage, ring.stage, end, p, warp, lane);
    if (threadIdx.x == 0) STAMP(1, ring.stamp_n, 6);
    __syncwarp();
    if (lane == 0) EmptyBarrier::arrive(&storage.empty[ring.stage]);
    ring.advance();
  }
}

}  // namespace openmsa::cuda::sm90::decode
