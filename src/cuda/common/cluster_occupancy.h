// How many clusters of a kernel a device holds at once, asked of the runtime once: the question takes it longer than a
// launch.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <atomic>

#include "cuda/common/error.h"

namespace openmsa::cuda {

/// Of one kernel with one size of its CTAs; any thread may ask.
class ClusterOccupancy {
 public:
  /// ask(): what active_clusters says of clusters of so many CTAs.
  template <class Ask>
  int active(unsigned int ctas, Ask ask) {
    int device = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    if (static_cast<std::size_t>(device) >= known_.size() || ctas > kMaxCtas) return ask();
    std::atomic<int>& known = known_[static_cast<std::size_t>(device)][ctas];
    int plus_one = known.load(std::memory_order_relaxed);  // 0: not asked yet
    if (plus_one == 0) known.store(plus_one = ask() + 1, std::memory_order_relaxed);
    return plus_one - 1;
  }

 private:
  static constexpr std::size_t kDevices = 16, kMaxCtas = 16;
  std::array<std::array<std::atomic<int>, kMaxCtas + 1>, kDevices> known_{};
};

}  // namespace openmsa::cuda
