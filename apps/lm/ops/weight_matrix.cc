#include "lm/ops/weight_matrix.h"

#include <algorithm>

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
  for (std::int64_t c = 0; c < in; ++c) target[c] = block.fp32 ? block.fp32[c] : io::to_float(block.bf16[c]);
}

}  // namespace openmsa::lm
