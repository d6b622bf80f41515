// Sums over the threads of a CTA.
#pragma once

#include "cuda_runtime.h"

namespace cub {

enum BlockScanAlgorithm { BLOCK_SCAN_RAKING, BLOCK_SCAN_WARP_SCANS };

template <class T, int kThreads, BlockScanAlgorithm = BLOCK_SCAN_RAKING>
class BlockScan {
 public:
  struct TempStorage {
    T before[kThreads];
    T all;
  };
  explicit BlockScan(TempStorage& storage) : storage_(storage) {}

  /// before: `first` and the x of all threads in front; all: those of all threads.
  template <class Sum>
  void ExclusiveScan(T x, T& before, T first, Sum sum, T& all) {
    storage_.before[threadIdx.x] = x;
    __syncthreads();
    if (threadIdx.x == 0) {
      T total = first;
      for (T& entry : storage_.before) {
        const T own = entry;
        entry = total;
        total = sum(total, own);
      }
      storage_.all = total;
    }
    __syncthreads();
    before = storage_.before[threadIdx.x];
    all = storage_.all;
  }
  void ExclusiveSum(T x, T& before, T& all) {
    ExclusiveScan(
        x, before, T{0}, [](T a, T b) { return a + b; }, all);
  }

 private:
  TempStorage& storage_;
};

}  // namespace cub
