#include "msa/bench/prefill/check.h"

#include <set>
#include <string>

#include "judge/sampled_row.h"

namespace openmsa::cli {
namespace {

/// First, last and a few between.
std::set<std::int64_t> sampled_rows(const PrefillProblem& problem) {
  constexpr std::int64_t kParts = 5;
  const std::int64_t last = problem.config().max_total_q - 1;
  std::set<std::int64_t> rows;
  for (std::int64_t part = 0; part <= kParts; ++part) rows.insert(last * part / kParts);
  return rows;
}

judge::VisibleKeys keys_of(const PrefillProblem& problem, std::int64_t row) {
  judge::VisibleKeys visible{0};
  std::int64_t q_end = 0;
  for (const auto& [queries, keys] : problem.sequences()) {
    q_end += queries;
    visible.count = keys - (q_end - 1 - row);
    if (row < q_end) break;
    visible.first_row += keys;
  }
  return visible;
}

/// The row with the tensors of `op`.
judge::SampledRow sample(const PrefillProblem& problem, std::int64_t row, openmsa_op op) {
  return {problem.config(), problem.tensors(op), problem.device().copier(), row, keys_of(problem, row)};
}

}  // namespace

void check_prefill_selection(const PrefillProblem& problem) {
  for (const std::int64_t row : sampled_rows(problem)) {
    judge::require_no_fault("query " + std::to_string(row),
                            sample(problem, row, OPENMSA_OP_SELECT_BLOCKS).selection_fault());
  }
}

void check_prefill_output(const PrefillProblem& problem, bool is_dense) {
  judge::RelativeError error;
  for (const std::int64_t row : sampled_rows(problem)) {
    sample(problem, row, OPENMSA_OP_SPARSE_ATTENTION).add_to(error, is_dense);
  }
  judge::require_close(error, is_dense ? "dense" : "sparse", problem.config().dtype);
}

}  // namespace openmsa::cli
