#include "cpu/running_softmax.h"

#include <algorithm>
#include <cmath>

#include "cpu/columns.h"

namespace openmsa::cpu {

void RunningSoftmax::reset(std::int64_t rows) const {
  std::fill(o, o + rows * ld, 0.0f);
  std::fill(max, max + rows, -kInfinity);
  std::fill(sum, sum + rows, 0.0f);
}

void merge_rows(const RunningSoftmax& row, const RunningSoftmax& other) {
  const float max = std::max(*row.max, *other.max);
  if (max == -kInfinity) return;
  const float alpha = std::exp(*row.max - max), beta = std::exp(*other.max - max);
  for (std::int64_t c = 0; c < row.ld; ++c) other.o[c] *= beta;
  tile_ops().scale_add(row.o, other.o, alpha, row.ld);
  *row.sum = *row.sum * alpha + *other.sum * beta;
  *row.max = max;
}

void write_row(const core::Problem& problem, std::int64_t row, std::int64_t head, const RunningSoftmax& state) {
  const openmsa_tensors& tensors = problem.tensors;
  const bool is_empty = *state.sum == 0;
  store_row(state.o, is_empty ? 0 : 1 / *state.sum, problem.plan.config.head_dim, tensors.o.dtype,
            core::address(tensors.o, row, head));
  if (core::present(tensors.lse)) {
    core::element<float>(tensors.lse, row, head) = is_empty ? -kInfinity : *state.max + std::log(*state.sum);
  }
}

}  // namespace openmsa::cpu
