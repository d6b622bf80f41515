// A matrix of weights, read where it lies: in a trainer's array or in the mapped files of a checkpoint, which may hold
// it in several tensors.
#pragma once

#include <cstdint>
#include <vector>

#include "io/dtype.h"

namespace openmsa::lm {

/// Rows of a matrix that lie together; one of the pointers is set.
struct WeightBlock {
  std::int64_t rows;
  const float* fp32 = nullptr;
  const io::BFloat16* bf16 = nullptr;
};

/// A matrix [out, in], its rows block after block.
struct WeightMatrix {
  std::int64_t in;
  std::vector<WeightBlock> blocks;

  /// Rows [begin, begin + count), which the caller knows to exist.
  WeightMatrix rows(std::int64_t begin, std::int64_t count) const;
  void copy_row(std::int64_t row, float* target) const;
};

}  // namespace openmsa::lm
