#include "lm/model/weights.h"

#include <algorithm>
#include <utility>

namespace openmsa::lm {
namespace {

WeightBlock part(const WeightBlock& block, std::int64_t in, std::int64_t begin, std::int64_t count) {
  return {count, block.fp32 ? block.fp32 + begin * in : nullptr, block.bf16 ? block.bf16 + begin * in : nullptr};
}

}  // namespace

WeightMatrix WeightMatrix::rows(std::int64_t begin, std::int64_t count) const {
  WeightMatrix result{in, {}};
  std::int64_t first = 0;
  for (const WeightBlock& block : blocks) {
    const std::int64_t from = std::max(begin, first);
    const std::int64_t to = std::min(begin + count, first + block.rows);
    if (from < to) result.blocks.push_back(part(block, in, from - first, to - from));
    first += block.rows;
  }
  return result;
}

void WeightMatrix::copy_row(std::int64_t row, float* target) const {
  const WeightMatrix found = rows(row, 1);
  const WeightBlock& block = found.blocks.front();
  for (std::int64_t c = 0; c < in; ++c) target[c] = block.fp32 ? block.fp32[c] : core::to_float(block.bf16[c]);
}

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
      sum += static_cast<std::uint64_t>(block.rows * matrix.in) * (block.fp32 ? sizeof(float) : sizeof(core::BFloat16));
    }
  }
  return sum;
}

}  // namespace openmsa::lm
