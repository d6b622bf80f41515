// The producer's side of keys: one tile of k, v or index_k, contiguous or page by page, through the copy engine.
#pragma once

#include <cute/arch/copy_sm90_tma.hpp>

#include "cuda/common/batch_view.h"
#include "cuda/sm90/tile/pipeline.cuh"

namespace openmsa::cuda::sm90 {

/// How the tensor map of keys is cut: boxes of `rows` keys. Contiguous keys: the whole tile; pages: one page each.
struct KeyBoxes {
  std::int32_t rows;
  std::int32_t head;
};

/// Loads keys [first, first + kTileKeys) of a sequence into a swizzled [kTileKeys][kDim] tile, panels of up to 128
/// bytes of channels one after the other, and tells `full` how many bytes will come. Pages past the end of the
/// sequence are not looked up; their rows keep what was there.
template <class Element, int kDim, int kTileKeys>
__device__ __forceinline__ void load_keys(const CUtensorMap& map, const BatchView& batch, std::int32_t sequence,
                                          const SequenceView& view, std::int32_t first, KeyBoxes boxes, Element* tile,
                                          std::uint64_t* full) {
  constexpr int kPanel = cute::min(kDim, 128 / static_cast<int>(sizeof(Element)));  // channels
  const bool is_paged = batch.page_size != 0;
  const std::int32_t used = min(kTileKeys, view.seqlen_k - first);
  const std::int32_t count = is_paged ? (used + boxes.rows - 1) / boxes.rows : kTileKeys / boxes.rows;
  FullBarrier::arrive_and_expect_tx(full, count * boxes.rows * kDim * static_cast<int>(sizeof(Element)));
#pragma unroll 1
  for (std::int32_t i = 0; i < count; ++i) {
    const std::int32_t row = is_paged ? 0 : view.k_row + first + i * boxes.rows;
    const std::int32_t page = is_paged ? batch.page(sequence, first / batch.page_size + i) : 0;
    for (int channel = 0; channel < kDim; channel += kPanel) {
      Element* to = tile + channel * kTileKeys + i * boxes.rows * kPanel;
      cute::SM90_TMA_LOAD_4D::copy(&map, full, static_cast<std::uint64_t>(cute::TMA::CacheHintSm90::EVICT_NORMAL), to,
                                   channel, boxes.head, row, page);
    }
  }
}

}  // namespace openmsa::cuda::sm90
