// The teacher's probabilities of the KL loss on their way from the kernel that computes them (the gradient of attention,
// or one of their own) to the one that takes the gradients.
#pragma once

#include <cstdint>

#include "cuda/generic/lists/params.h"

namespace openmsa::cuda::generic::training {

inline constexpr int kTileKeys = 128;  // keys of a work item

/// P[i,j,r], the mean over the heads of group r, of every visit of a list batch: [visits][128 keys of the kv_block] in
/// fp16, times kTeacherOne. Keys j and j + 8 of each 16 lie side by side: a thread of an accumulator holds both.
struct TeacherRows {
  std::uint16_t* data;  // nullptr: nobody wants them
  std::int32_t slots;   // visits of a row and KV head over the whole history, its kv_blocks; 0: those of a selection

  /// Number of an item's first visit. The one after it is `stride()` further on.
  OPENMSA_DEVICE std::int64_t first_visit(const generic::ListBatch& work, const generic::ListItem& item) const {
    return slots == 0 ? item.begin : work.place(item.head, item.begin) * slots + item.block;
  }
  OPENMSA_DEVICE std::int32_t stride() const { return slots == 0 ? 1 : slots; }
};

/// 11 significant bits down to 2^-26, none below 2^-36.
inline constexpr float kTeacherOne = 1 << 12;
inline constexpr std::int64_t kTeacherBytes = 2 * kTileKeys;  // of a visit

}  // namespace openmsa::cuda::generic::training
