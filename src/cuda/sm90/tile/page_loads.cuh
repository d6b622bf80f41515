// The producer warp's copies of keys, page by page: every lane issues the boxes whose page number it has looked up.
#pragma once

#include "cuda/common/batch_view.h"
#include "cuda/common/math.h"
#include "cuda/sm90/ptx/async_copy.cuh"
#include "cuda/sm90/tile/load_scales.cuh"
#include "cuda/sm90/tile/pipeline.cuh"

namespace openmsa::cuda::sm90 {

/// Entries of a sequence's row of block_table, 32 at a time, one per lane: the pages of its seqlen_k keys, of those in
/// the shard where there are shards. Pages past them are not looked up.
class PageWindow {
 public:
  __device__ __forceinline__ PageWindow(const BatchView& batch, std::int32_t sequence, std::int32_t seqlen_k, int lane)
      : batch_(&batch), sequence_(sequence), lane_(lane) {
    if (batch.page_size != 0) pages_ = (seqlen_k + batch.page_size - 1) >> log2_of(batch.page_size);
  }

  /// Page `first + i` of the sequence in lane i, for i < count.
  __device__ __forceinline__ std::int32_t at(std::int32_t first, int count) {
    if (first < begin_ || first + count > begin_ + 32) {
      begin_ = first;
      const std::int32_t mine = begin_ + lane_;
      page_ = mine < pages_ ? batch_->table(sequence_, mine) : 0;
    }
    return __shfl_sync(kFullWarp, page_, (first - begin_ + lane_) % 32);
  }

 private:
  const BatchView* batch_;
  std::int32_t sequence_;
  std::int32_t pages_ = 0;
  int lane_;
  std::int32_t begin_ = -64;
  std::int32_t page_ = 0;
};

/// A run of keys of one sequence in boxes of the tensor map: which box a lane loads, if any, and where it comes from.
struct KeyBox {
  bool exists;
  std::int32_t row;   // of the map: token of the page, or of all contiguous keys
  std::int32_t page;  // 0 for contiguous keys
};

/// Lane i's box of the keys from `first` on, box_rows each: at most a page, or all keys of a tile where they are
/// contiguous. `count` boxes hold keys of the sequence.
__device__ __forceinline__ KeyBox key_box(const BatchView& batch, const SequenceView& view, PageWindow& pages,
                                          std::int32_t first, std::int32_t box_rows, int count, int lane) {
  const bool exists = lane < count;
  if (batch.page_size == 0) return {exists, view.k_row + first + lane * box_rows, 0};
  const std::int32_t token = first + lane * box_rows;
  // Either a box is a page, or the tile lies inside of one page.
  return {exists, token & (batch.page_size - 1), pages.at(first >> log2_of(batch.page_size), count)};
}

/// Loads a box of keys of `head`, panel by panel: its rows of a tile begin at `to`.
template <class Tile, class Element>
__device__ __forceinline__ void load_box(const CUtensorMap& map, std::uint64_t* full, char* to, std::int32_t head,
                                         const KeyBox& box) {
#pragma unroll
  for (int byte = 0; byte < Tile::kBytesPerRow; byte += Tile::kPanelBytes) {
    cute::SM90_TMA_LOAD_4D::copy(&map, full, static_cast<std::uint64_t>(CacheHintSm90::EVICT_NORMAL),
                                 to + byte * Tile::kRows, byte / static_cast<int>(sizeof(Element)), head, box.row,
                                 box.page);
  }
}

/// load_scales for the keys whose boxes the lanes have looked up; `box` is this lane's.
template <int kTileKeys>
__device__ __forceinline__ void load_box_scales(const BatchView& batch, const SequenceView& view,
                                                const TokenScale& scale, std::int32_t head, const KeyBox& box,
                                                std::int32_t first, std::int32_t box_rows, float* to,
                                                std::uint64_t* full, int lane) {
  load_scales<kTileKeys>(scale, head, view.seqlen_k - first, to, full, lane, [&](int at) {
    const std::int64_t page = __shfl_sync(kFullWarp, box.page, at >> log2_of(box_rows));
    return batch.page_size == 0 ? view.k_row + first + at
                                : page * batch.page_size + ((first + at) & (batch.page_size - 1));
  });
}

}  // namespace openmsa::cuda::sm90
