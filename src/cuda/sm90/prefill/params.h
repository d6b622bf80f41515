// Attention over a selection: parameters of the two kernels that work off a schedule (generic/schedule/params.h).
#pragma once

#include <cstdint>

#include "cuda/common/tensor_view.h"
#include "cuda/generic/schedule/params.h"

namespace openmsa::cuda::sm90::prefill {

using generic::kMaxTileQueries;
using generic::KvOuterItem;
using generic::ScheduleBatch;
using generic::ScheduleParams;
using generic::SharedBlock;
using generic::Visit;

struct AttendParams : ScheduleParams {
  std::int32_t key_box_rows;
  float scale_log2;  // softmax_scale * log2(e)
  OutputRows out;
  TokenScale k_scale;  // of e4m3 keys and values
  TokenScale v_scale;
};

/// Schedule batches that one launch works off side by side, a row of CTAs each: heads of a call that leaves SMs idle.
inline constexpr int kBatchesTogether = 4;
struct AttendBatches {
  AttendParams of[kBatchesTogether];
};

}  // namespace openmsa::cuda::sm90::prefill
