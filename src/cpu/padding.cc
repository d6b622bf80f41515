// Rows that belong to no sequence still get a defined value in every output.

#include "core/problem.h"
#include "cpu/stages.h"
#include "cpu/tile/tile.h"

namespace openmsa::cpu {
namespace {

using core::Problem;

/// Sets rows [begin, end) along dimension `axis` of an output, if it is there.
void fill_rows(const openmsa_tensor& tensor, int axis, std::int64_t begin, std::int64_t end, double value) {
  if (!core::present(tensor) || begin >= end) return;
  std::int64_t extent[3] = {1, 1, 1};
  for (int d = 0; d < tensor.rank; ++d) extent[d] = tensor.shape[d];
  for (std::int64_t row = begin; row < end; ++row) {
    for (std::int64_t a = 0; a < extent[axis == 0 ? 1 : 0]; ++a) {
      for (std::int64_t b = 0; b < extent[2]; ++b) {
        const std::int64_t i = axis == 0 ? row : a, j = axis == 0 ? a : row;
        if (tensor.dtype == OPENMSA_INT32) {
          core::element<std::int32_t>(tensor, i, j, b) = static_cast<std::int32_t>(value);
        } else if (tensor.dtype == OPENMSA_INT64) {
          core::element<std::int64_t>(tensor, i, j, b) = static_cast<std::int64_t>(value);
        } else {
          core::store(tensor, value, i, j, b);
        }
      }
    }
  }
}

}  // namespace

void write_query_padding(const Problem& problem, const openmsa_tensor& tensor, int axis, double value) {
  fill_rows(tensor, axis, problem.used_q(), problem.total_q, value);
}

void write_key_padding(const Problem& problem, const openmsa_tensor& tensor) {
  if (!core::present(tensor)) return;
  std::int64_t used = 0;
  if (problem.batch > 0) {
    const core::Sequence last = problem.sequence(problem.batch - 1);
    used = last.k_begin + last.seqlen_k;
  }
  fill_rows(tensor, 0, used, tensor.shape[0], 0);
}

void write_attention_padding(const Problem& problem) {
  write_query_padding(problem, problem.tensors.o, 0, 0);
  write_query_padding(problem, problem.tensors.lse, 0, -kInfinity);
}

}  // namespace openmsa::cpu
