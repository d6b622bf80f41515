#include "msa/verify/judge.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>
#include <limits>
#include <string_view>

#include "core/tolerance.h"
#include "msa/verify/accuracy.h"

namespace openmsa::cli {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::size_t num_elements(const openmsa_tensor& tensor) {
  std::size_t count = 1;
  for (int d = 0; d < tensor.rank; ++d) count *= static_cast<std::size_t>(tensor.shape[d]);
  return count;
}

double different_bytes(const openmsa_tensor& got, const openmsa_tensor& expected) {
  const auto *x = static_cast<const std::byte*>(got.data), *y = static_cast<const std::byte*>(expected.data);
  const std::size_t bytes = num_elements(got) * openmsa_dtype_bytes(got.dtype);
  std::size_t different = 0;
  for (std::size_t i = 0; i < bytes; ++i) different += x[i] != y[i];
  return static_cast<double>(different);
}

/// ||got - expected|| / ||expected||.
double relative_error(const openmsa_tensor& got, const openmsa_tensor& expected) {
  const std::vector<double> x = to_doubles(got), y = to_doubles(expected);
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    difference += (x[i] - y[i]) * (x[i] - y[i]);
    norm += y[i] * y[i];
  }
  const double error = difference == 0 ? 0 : std::sqrt(difference / norm);
  return std::isnan(error) ? kInfinity : error;
}

/// Largest |got - expected|. Infinities must stand in the same places.
double largest_error(const openmsa_tensor& got, const openmsa_tensor& expected) {
  const std::vector<double> x = to_doubles(got), y = to_doubles(expected);
  double largest = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (x[i] == y[i]) continue;
    const double error = std::abs(x[i] - y[i]);
    largest = std::isnan(error) ? kInfinity : std::max(largest, error);
  }
  return largest;
}

/// Ascending kv_blocks of one row without what pads it.
std::vector<std::int32_t> chosen_blocks(const openmsa_tensor& topk_indices, std::int64_t head, std::int64_t row) {
  const auto* begin = static_cast<const std::int32_t*>(topk_indices.data) + head * topk_indices.strides[0] +
                      row * topk_indices.strides[1];
  const auto* end = begin + topk_indices.shape[2];
  while (end != begin && end[-1] == -1) --end;
  return {begin, end};
}

/// As many kv_blocks as the reference's, ascending, and others only where the scores are too close to tell.
bool is_right(const std::vector<std::int32_t>& got, const std::vector<std::int32_t>& expected, const float* scores,
              std::int64_t visible, double allowed) {
  const bool is_inside = std::all_of(got.begin(), got.end(), [&](auto block) { return block >= 0 && block < visible; });
  const bool is_ascending = std::adjacent_find(got.begin(), got.end(), std::greater_equal<>()) == got.end();
  if (!is_inside || !is_ascending || got.size() != expected.size()) return false;
  std::vector<std::int32_t> more, missing;
  std::set_difference(got.begin(), got.end(), expected.begin(), expected.end(), std::back_inserter(more));
  std::set_difference(expected.begin(), expected.end(), got.begin(), got.end(), std::back_inserter(missing));
  float largest = 0;
  for (std::int64_t block = 0; block < visible; ++block) largest = std::max(largest, std::abs(scores[block]));
  return std::all_of(more.begin(), more.end(), [&](std::int32_t x) {
    return std::all_of(missing.begin(), missing.end(),
                       [&](std::int32_t y) { return std::abs(scores[x] - scores[y]) <= allowed * largest; });
  });
}

/// Rows of a selection that the reference would not have made.
double wrong_rows(const VerifyProblem& problem, const openmsa_tensor& topk_indices, double allowed) {
  const openmsa_tensor& scores = problem.data(&Tensors::block_scores);
  const openmsa_tensor& expected = problem.data(&Tensors::topk_indices);
  double wrong = 0;
  for (std::int64_t head = 0; head < topk_indices.shape[0]; ++head) {
    for (std::int64_t row = 0; row < topk_indices.shape[1]; ++row) {
      const auto* row_scores =
          static_cast<const float*>(scores.data) + head * scores.strides[0] + row * scores.strides[1];
      wrong += !is_right(chosen_blocks(topk_indices, head, row), chosen_blocks(expected, head, row), row_scores,
                         problem.visible_blocks(row), allowed);
    }
  }
  return wrong;
}

Finding compare(const VerifyProblem& problem, openmsa_op op, const char* name, const openmsa_tensor& got,
                const openmsa_tensor& expected, const core::Tolerance& allowed) {
  constexpr double kRecallAllowed = 1e-5;  // shares of probabilities that are summed in fp32
  const std::string_view tensor = name;
  if (tensor == "topk_indices") {  // ties of the scores that openmsa_topk reads have one right order
    return {name, op == OPENMSA_OP_TOPK ? different_bytes(got, expected) : wrong_rows(problem, got, allowed.score), 0};
  }
  if (tensor == "block_scores") return {name, largest_error(got, expected), allowed.score};  // near 1
  if (tensor == "o") return {name, relative_error(got, expected), allowed.o};
  if (tensor == "lse") return {name, largest_error(got, expected), allowed.lse};
  if (tensor.ends_with("_recall")) return {name, largest_error(got, expected), kRecallAllowed};
  if (tensor.ends_with("_cache") || tensor.ends_with("_scale")) return {name, different_bytes(got, expected), 0};
  return {name, relative_error(got, expected), allowed.gradient};
}

}  // namespace

double Finding::share() const { return error == 0 ? 0 : error / allowed; }

std::vector<Finding> judge(const VerifyProblem& problem, const Config& judged, const Plan& reference, openmsa_op op) {
  const Tensors got = problem.got(op);
  Tensors expected = problem.expected(op);
  Workspace workspace;
  if (op == OPENMSA_OP_MSA_ATTENTION) {
    // Close contenders may have changed places: the selection is judged by the scores, o and lse as attention over it.
    expected = problem.expected(OPENMSA_OP_SPARSE_ATTENTION);
    expected.topk_indices = got.topk_indices;
    reference.run(OPENMSA_OP_SPARSE_ATTENTION, expected, workspace);
  } else {
    reference.run(op, expected, workspace);
  }
  std::vector<Finding> findings;
  for (const char* name : tensor_names()) {
    if (!writes(problem.config(), op, name) || at(got, name).rank == 0) continue;
    findings.push_back(compare(problem, op, name, at(got, name), at(expected, name), core::tolerance(judged)));
  }
  return findings;
}

}  // namespace openmsa::cli
