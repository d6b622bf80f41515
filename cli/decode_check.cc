#include "decode_check.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "accuracy.h"
#include "core/dtype.h"

namespace openmsa::cli {
namespace {

std::vector<double> run_output(const Plan& plan, const DecodeProblem& problem, openmsa_op op) {
  const Tensors tensors = problem.tensors(op);
  Workspace workspace;
  plan.run(op, tensors, workspace);
  std::vector<double> values(static_cast<std::size_t>(tensors.o.shape[0] * tensors.o.strides[0]));
  core::visit_dtype(tensors.o.dtype, [&]<class T>(T) {
    const T* data = static_cast<const T*>(tensors.o.data);
    std::transform(data, data + values.size(), values.begin(), [](T value) { return core::to_float(value); });
  });
  return values;
}

void check_output(const Plan& plan, const Plan& reference, const DecodeProblem& problem, openmsa_op op) {
  const std::vector<double> expected = run_output(reference, problem, op);
  const std::vector<double> got = run_output(plan, problem, op);
  double error = 0;
  double norm = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    error += (got[i] - expected[i]) * (got[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  const double relative = std::sqrt(error / norm);
  const double allowed = tolerance(problem.config().dtype).output;
  if (relative <= allowed) return;  // also refuses NaN
  throw std::runtime_error(std::string(op == OPENMSA_OP_DENSE_ATTENTION ? "dense" : "sparse") +
                           " attention is wrong: relative error " + std::to_string(relative) + ", allowed " +
                           std::to_string(allowed));
}

void check_selection(const Plan& plan, const Plan& reference, const DecodeProblem& problem) {
  const Config& config = problem.config();
  const std::int64_t rows = config.num_heads_kv * config.max_batch;
  std::vector<float> scores(static_cast<std::size_t>(rows * problem.num_blocks()));
  Tensors scoring = problem.tensors(OPENMSA_OP_BLOCK_SCORES);
  scoring.block_scores = view(scores.data(), {config.num_heads_kv, config.max_batch, problem.num_blocks()});
  Workspace workspace;
  reference.run(OPENMSA_OP_BLOCK_SCORES, scoring, workspace);

  const Tensors selection = problem.tensors(OPENMSA_OP_SELECT_BLOCKS);
  plan.run(OPENMSA_OP_SELECT_BLOCKS, selection, workspace);
  const auto* chosen = static_cast<const std::int32_t*>(selection.topk_indices.data);
  for (std::int64_t row = 0; row < rows; ++row) {
    if (!is_best(config, scores.data() + row * problem.num_blocks(), problem.num_blocks(),
                 chosen + row * config.topk)) {
      throw std::runtime_error("selection is wrong: row " + std::to_string(row) + " misses a better kv_block");
    }
  }
}

}  // namespace

void check_decode(const Plan& plan, const DecodeProblem& problem) {
  Config config = problem.config();
  config.backend = OPENMSA_BACKEND_REFERENCE;
  const Plan reference(config);
  check_selection(plan, reference, problem);
  check_output(plan, reference, problem, OPENMSA_OP_SPARSE_ATTENTION);  // over the selection just checked
  check_output(plan, reference, problem, OPENMSA_OP_DENSE_ATTENTION);
}

}  // namespace openmsa::cli
