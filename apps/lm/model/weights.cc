#include "lm/model/weights.h"

#include <utility>

namespace openmsa::lm {

Weights::Weights(const Parameters& parameters) : layout_(parameters.shared_layout()), precision_(Precision::kFp32) {
  for (const Parameter& parameter : parameters.layout().parameters()) {
    const std::int64_t in = parameter.shape.back();
    const auto rows = static_cast<std::int64_t>(parameter.size) / in;
    matrices_.push_back({in, {{rows, parameters.of(parameter).data(), nullptr}}});
  }
}

Weights::Weights(Parameters&& parameters) : Weights(std::make_shared<const Parameters>(std::move(parameters))) {}

Weights::Weights(const std::shared_ptr<const Parameters>& kept) : Weights(*kept) { storage_ = kept; }

Weights::Weights(std::shared_ptr<const ParameterLayout> layout, std::shared_ptr<const void> storage,
                 std::vector<WeightMatrix> matrices, Precision precision)
    : layout_(std::move(layout)), storage_(std::move(storage)), matrices_(std::move(matrices)), precision_(precision) {}

std::uint64_t Weights::bytes() const {
  std::uint64_t sum = 0;
  for (const WeightMatrix& matrix : matrices_) {
    for (const WeightBlock& block : matrix.blocks) {
      sum += static_cast<std::uint64_t>(block.rows * matrix.in) * (block.fp32 ? sizeof(float) : sizeof(io::BFloat16));
    }
  }
  return sum;
}

}  // namespace openmsa::lm
