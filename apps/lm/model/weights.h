// A decoder's parameters for the forward pass, read where they lie: a trainer's array or the mapped files of a
// checkpoint, which may hold one parameter in several tensors.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "core/dtype.h"
#include "lm/model/parameters.h"
#include "lm/ops/precision.h"

namespace openmsa::lm {

/// Rows of a matrix that lie together; one of the pointers is set.
struct WeightBlock {
  std::int64_t rows;
  const float* fp32 = nullptr;
  const core::BFloat16* bf16 = nullptr;
};

/// A matrix [out, in], its rows block after block.
struct WeightMatrix {
  std::int64_t in;
  std::vector<WeightBlock> blocks;

  /// Rows [begin, begin + count), which the caller knows to exist.
  WeightMatrix rows(std::int64_t begin, std::int64_t count) const;
  void copy_row(std::int64_t row, float* target) const;
};

class Weights {
 public:
  /// A view of fp32 parameters, which must outlive it; temporary ones are kept. Implicit, so that a trainer passes its
  /// parameters as they are.
  Weights(const Parameters& parameters);  // NOLINT(google-explicit-constructor)
  Weights(Parameters&& parameters);       // NOLINT(google-explicit-constructor)

  /// `matrices[i]` of parameter i; whatever they point into lives in `storage`.
  Weights(std::shared_ptr<const ParameterLayout> layout, std::shared_ptr<const void> storage,
          std::vector<WeightMatrix> matrices, Precision precision);

  const ParameterLayout& layout() const { return *layout_; }

  /// [out, in]; the experts of a layer lie one after the other.
  const WeightMatrix& matrix(ParameterIndex index) const { return matrices_[index]; }
  /// A norm's weight or a bias, always fp32.
  const float* vector(ParameterIndex index) const { return matrices_[index].blocks.front().fp32; }
  /// Of all matrices together, as they are stored.
  std::uint64_t bytes() const;
  /// Of the activations that these weights ask for.
  Precision precision() const { return precision_; }

 private:
  explicit Weights(const std::shared_ptr<const Parameters>& kept);

  std::shared_ptr<const ParameterLayout> layout_;
  std::shared_ptr<const void> storage_;
  std::vector<WeightMatrix> matrices_;
  Precision precision_;
};

}  // namespace openmsa::lm
