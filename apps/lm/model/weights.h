// A decoder's parameters for the forward pass, read where they lie: a trainer's array or the mapped files of a
// checkpoint, which may hold one parameter in several tensors.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "lm/model/parameters.h"
#include "lm/ops/precision.h"
#include "lm/ops/weight_matrix.h"

namespace openmsa::lm {

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
  /// Bytes of all matrices together, as they are stored.
  std::uint64_t bytes() const;
  /// The precision of activations that these weights ask for.
  Precision precision() const { return precision_; }

 private:
  explicit Weights(const std::shared_ptr<const Parameters>& kept);

  std::shared_ptr<const ParameterLayout> layout_;
  std::shared_ptr<const void> storage_;
  std::vector<WeightMatrix> matrices_;
  Precision precision_;
};

}  // namespace openmsa::lm
