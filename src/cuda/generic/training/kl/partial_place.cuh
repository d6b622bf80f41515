// Where the log-sum-exps of a row's kv_blocks meet.
#pragma once

#include "cuda/generic/training/kl/params.h"

namespace openmsa::cuda::generic::training::kl {

/// Where the partial result of a row and kv_block goes; nullptr in lanes that do not store it. The four lanes of a quad
/// look at every fourth slot of the row's selection; without one the kv_block is the slot.
__device__ __forceinline__ PartialLse* partial_place(const Params& p, const ListItem& item, std::int32_t row,
                                                     int lane) {
  if (row < 0) return nullptr;
  PartialLse* const partials = p.partials + p.work.place(item.head, row) * p.slots;
  if (p.topk_indices.data == nullptr) return lane % 4 == 0 ? partials + item.block : nullptr;
  const std::int32_t* const chosen = p.topk_indices.row(item.head, row);
  PartialLse* found = nullptr;
#pragma unroll 4
  for (int slot = lane % 4; slot < p.slots; slot += 4) {
    if (chosen[slot * p.topk_indices.strides[2]] == item.block) found = partials + slot;
  }
  return found;
}

}  // namespace openmsa::cuda::generic::training::kl
