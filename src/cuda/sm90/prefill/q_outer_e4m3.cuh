// The warps of q_outer that keys and values in e4m3 pass through before products read them: who loads them, who loads
// their scales, who widens them. All go through the tiles and their shared blocks in the order of the consumers.
#pragma once

#include "cuda/common/math.h"
#include "cuda/sm90/prefill/q_outer_config.cuh"
#include "cuda/sm90/tile/pipeline.cuh"

namespace openmsa::cuda::sm90::prefill {

/// Warps that fill a stage with e4m3 and scales.
__device__ __forceinline__ int raw_arrivals(const AttendParams& p) { return has_scales_of_tokens(p) ? 2 : 1; }

/// Pages of a tile's shared blocks from entry `begin` on, as many as a warp holds at once.
template <class Config>
__device__ __forceinline__ BlockPages<Config::Tile::kBlock> pages_of_shared(const AttendParams& p,
                                                                            const QueryTile& tile,
                                                                            const SharedBlock* entries, int num_shared,
                                                                            int begin) {
  using Pages = BlockPages<Config::Tile::kBlock>;
  const int lane = threadIdx.x % 32, own = begin + Pages::block_of_lane(p.batch, lane);
  const bool exists = own < num_shared;
  return {p.batch, tile.sequence, tile.view.seqlen_k, exists ? entries[own].block : 0, exists, lane};
}

/// Keys and values of a tile's shared blocks in e4m3; a warp.
template <class Config>
__device__ __forceinline__ void load_e4m3_blocks(const AttendParams& p, const CUtensorMap& map_k,
                                                 const CUtensorMap& map_v, const QueryTile& tile,
                                                 const SharedBlock* entries, int num_shared,
                                                 PipelineState<Config::kStages>& ring,
                                                 typename Config::Storage& storage) {
  using Tile = typename Config::Tile;
  using Cached = typename Config::Cached;
  using Pages = BlockPages<Tile::kBlock>;
  using Widened = WidenedTile<Tile::kDim, Tile::kBlock>;
  const int at_once = Pages::blocks_at_once(p.batch);
  for (int begin = 0; begin < num_shared; begin += at_once) {
    const Pages pages = pages_of_shared<Config>(p, tile, entries, num_shared, begin);
    for (int i = 0; i < min(at_once, num_shared - begin); ++i) {
      const int used = min(Tile::kBlock, tile.view.seqlen_k - pages.first_key(i));
      for (const CUtensorMap* map : {&map_k, &map_v}) {
        EmptyBarrier::wait(&storage.empty[ring.stage], ring.phase ^ 1);
        pages.template load<Tile::kDim>(*map, p.work.head, i, used,
                                        Widened::template source<Cached>(storage.ring[ring.stage]),
                                        &storage.widen.raw_full[ring.stage]);
        ring.advance();
      }
    }
  }
}

/// Scales of the keys that some query of each tile sees, where tokens have one each; a warp.
template <class Config>
__device__ __forceinline__ void load_scales_of_shared(const AttendParams& p, typename Config::Storage& storage) {
  using Tile = typename Config::Tile;
  using Pages = BlockPages<Tile::kBlock>;
  using Scales = BlockScales<Tile::kBlock>;
  using Widened = WidenedTile<Tile::kDim, Tile::kBlock>;
  const int lane = threadIdx.x % 32, tiles = tiles_of_work(p), at_once = Pages::blocks_at_once(p.batch);
  PipelineState<Config::kStages> ring;
  PipelineState<Config::kQueryStages> queries;
  PipelineState<Config::kScaleStages> blocks;
  const auto arrive_and_advance = [&] {
    __syncwarp();
    if (lane == 0) EmptyBarrier::arrive(&storage.widen.raw_full[ring.stage]);
    ring.advance();
  };
  for (int number = blockIdx.x; number < tiles; number += gridDim.x, queries.advance()) {
    FullBarrier::wait(&storage.q_full[queries.stage], queries.phase);
    const QueryTile tile = storage.tiles[queries.stage].queries;
    const int num_shared = storage.tiles[queries.stage].num_shared;
    const int most_slots = storage.tiles[queries.stage].most_slots;
    __syncwarp();
    if (lane == 0) EmptyBarrier::arrive(&storage.q_empty[queries.stage]);
    ValueUnit unit;
    for (int begin = 0; begin < num_shared; begin += at_once) {
      const Pages pages = pages_of_shared<Config>(p, tile, shared_of_tile(p, number), num_shared, begin);
      for (int i = 0; i < min(at_once, num_shared - begin); ++i, blocks.advance()) {
        const Scales scales(p, pages, i, tile.position + tile.count - pages.first_key(i), lane);
        QOuterScales<Tile::kBlock>& kept = storage.widen.scales[blocks.stage];
        EmptyBarrier::wait(&storage.empty[ring.stage], ring.phase ^ 1);
        if (p.k_scale.is_per_token()) scales.store_keys(kept.k, lane);
        if (p.v_scale.is_per_token()) {
          unit.raise(scales.largest_of_values());
          if (lane == 0) kept.v_unit = unit.value();
        }
        arrive_and_advance();
        EmptyBarrier::wait(&storage.empty[ring.stage], ring.phase ^ 1);
        if (p.v_scale.is_per_token()) scales.template store_shares<Widened>(unit, storage.ring[ring.stage], lane);
        arrive_and_advance();
      }
    }
    for (int slot = 0; slot < most_slots; ++slot) ring.advance();
  }
}

/// Widens the share of warp `number` of all keys and values.
template <class Config>
__device__ __forceinline__ void widen_q_outer(const AttendParams& p, typename Config::Storage& storage, int number,
                                              int lane) {
  using Tile = typename Config::Tile;
  const int tiles = tiles_of_work(p);
  PipelineState<Config::kStages> ring;
  PipelineState<Config::kQueryStages> queries;
  const auto widen_next = [&](auto widen) {
    FullBarrier::wait(&storage.widen.raw_full[ring.stage], ring.phase);
    widen(storage.ring[ring.stage]);
    finish_widening(&storage.full[ring.stage], lane);
    ring.advance();
  };
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, queries.advance()) {
    FullBarrier::wait(&storage.q_full[queries.stage], queries.phase);
    const int num_shared = storage.tiles[queries.stage].num_shared;
    const int most_slots = storage.tiles[queries.stage].most_slots;
    __syncwarp();
    if (lane == 0) EmptyBarrier::arrive(&storage.q_empty[queries.stage]);
    for (int u = 0; u < num_shared; ++u) {
      widen_next([&](void* k) { widen_keys<Tile>(k, number, Config::kWideners, lane); });
      widen_next([&](void* v) { widen_values<Tile>(p, v, number, Config::kWideners, lane); });
    }
    for (int slot = 0; slot < most_slots; ++slot) ring.advance();
  }
}

}  // namespace openmsa::cuda::sm90::prefill
