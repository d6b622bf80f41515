#include "msa/bench/decode/check.h"

#include <string>

#include "judge/sampled_row.h"

namespace openmsa::cli {
namespace {

constexpr int kCall = 0;  // the one that is checked

struct Row {
  std::int64_t sequence;
  std::int32_t token;  // of the sequence's queries
};

/// The first query of the first sequence, the last of the last, and one between.
std::vector<Row> sampled_rows(const DecodeProblem& problem) {
  const std::int64_t batch = problem.config().max_batch;
  const std::int32_t queries = problem.shape().queries;
  return {{0, 0}, {batch / 2, queries / 2}, {batch - 1, queries - 1}};
}

/// The row with the tensors of `op`.
judge::SampledRow sample(const DecodeProblem& problem, const Row& row, openmsa_op op) {
  const std::int32_t queries = problem.shape().queries;
  const std::int64_t seqlen_k = problem.seqlens_k()[static_cast<std::size_t>(row.sequence)];
  return {problem.config(),
          problem.tensors(op, kCall),
          problem.device().copier(),
          row.sequence * queries + row.token,
          {.count = seqlen_k - queries + row.token + 1, .pages = problem.pages(kCall, row.sequence)}};
}

void run(const Plan& plan, const DecodeProblem& problem, openmsa_op op) {
  const DeviceBuffer workspace(problem.device(), plan.workspace_bytes(op));
  problem.device().time([&] { plan.run(op, problem.tensors(op, kCall), workspace.workspace()); });
}

void check_selection(const DecodeProblem& problem) {
  for (const Row& row : sampled_rows(problem)) {
    judge::require_no_fault("query " + std::to_string(row.token) + " of sequence " + std::to_string(row.sequence),
                            sample(problem, row, OPENMSA_OP_SELECT_BLOCKS).selection_fault());
  }
}

void check_output(const DecodeProblem& problem, bool is_dense) {
  judge::RelativeError error;
  for (const Row& row : sampled_rows(problem)) {
    sample(problem, row, OPENMSA_OP_SPARSE_ATTENTION).add_to(error, is_dense);
  }
  judge::require_close(error, is_dense ? "dense" : "sparse", problem.config().dtype);
}

}  // namespace

void check_decode(const Plan& plan, const DecodeProblem& problem, bool with_dense) {
  run(plan, problem, OPENMSA_OP_SELECT_BLOCKS);
  check_selection(problem);
  run(plan, problem, OPENMSA_OP_SPARSE_ATTENTION);  // over the selection just checked
  check_output(problem, false);
  run(plan, problem, OPENMSA_OP_MSA_ATTENTION);
  check_selection(problem);
  check_output(problem, false);
  if (!with_dense) return;
  run(plan, problem, OPENMSA_OP_DENSE_ATTENTION);
  check_output(problem, true);
}

}  // namespace openmsa::cli
