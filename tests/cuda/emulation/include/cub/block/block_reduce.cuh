// The threads of a CTA put together; the result is thread 0's.
#pragma once

#include "cub/block/block_scan.cuh"

namespace cub {

template <class T, int kThreads>
class BlockReduce {
 public:
  struct TempStorage {
    T entries[kThreads];
  };
  explicit BlockReduce(TempStorage& storage) : storage_(storage) {}

  template <class Operation>
  T Reduce(T x, Operation operation) {
    storage_.entries[threadIdx.x] = x;
    __syncthreads();
    T result = x;
    for (int i = 1; threadIdx.x == 0 && i < kThreads; ++i) result = operation(result, storage_.entries[i]);
    return result;
  }
  T Sum(T x) {
    return Reduce(x, [](T a, T b) { return a + b; });
  }

 private:
  TempStorage& storage_;
};

}  // namespace cub
