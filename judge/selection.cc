#include "judge/selection.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "judge/tolerance.h"

namespace openmsa::judge {
namespace {

using Blocks = std::vector<std::int64_t>;

/// The row without what pads it.
Blocks chosen_blocks(std::span<const std::int64_t> row) {
  while (!row.empty() && row.back() == -1) row = row.first(row.size() - 1);
  return {row.begin(), row.end()};
}

/// Chosen blocks of `x` that are not in `y`; both ascending.
Blocks missing_from(const Blocks& x, const Blocks& y) {
  Blocks result;
  std::set_difference(x.begin(), x.end(), y.begin(), y.end(), std::back_inserter(result));
  return result;
}

}  // namespace

std::vector<std::int64_t> selection_row(const Buffer& topk_indices, std::int64_t head, std::int64_t row) {
  std::vector<std::int64_t> result;
  for (std::int64_t slot = 0; slot < topk_indices.shape()[2]; ++slot) {
    result.push_back(static_cast<std::int64_t>(topk_indices.at({head, row, slot})));
  }
  return result;
}

std::string selection_fault(std::span<const std::int64_t> got, std::span<const std::int64_t> reference,
                            std::span<const double> scores, double allowed) {
  const Blocks chosen = chosen_blocks(got), expected = chosen_blocks(reference);
  const auto visible = static_cast<std::int64_t>(scores.size());
  if (chosen.size() != expected.size()) {
    return "has " + std::to_string(chosen.size()) + " kv_blocks instead of " + std::to_string(expected.size());
  }
  for (const std::int64_t block : chosen) {
    if (block < 0 || block >= visible)
      return "has kv_block " + std::to_string(block) + ", which the query does not see";
  }
  if (std::adjacent_find(chosen.begin(), chosen.end(), std::greater_equal<>()) != chosen.end()) {
    return "is not ascending";
  }
  double largest = 0;
  for (const double score : scores) largest = std::max(largest, std::abs(score));
  for (const std::int64_t more : missing_from(chosen, expected)) {
    for (const std::int64_t missing : missing_from(expected, chosen)) {
      const double distance =
          std::abs(scores[static_cast<std::size_t>(more)] - scores[static_cast<std::size_t>(missing)]);
      if (distance < allowed * largest) continue;
      return "has kv_block " + std::to_string(more) + " instead of " + std::to_string(missing);
    }
  }
  return "";
}

std::vector<std::string> selection_faults(const Layer& layer, const Buffer& topk_indices, const Buffer& reference,
                                          const Buffer& block_scores) {
  const double allowed = tolerance(layer.config).score;
  std::vector<std::string> faults;
  for (std::int64_t head = 0; head < layer.shape.num_heads_kv; ++head) {
    for (std::int64_t row = 0; row < layer.total_q(); ++row) {
      std::vector<double> scores;
      for (std::int64_t b = 0; b < layer.visible_blocks(row); ++b) scores.push_back(block_scores.at({head, row, b}));
      const std::string fault =
          selection_fault(selection_row(topk_indices, head, row), selection_row(reference, head, row), scores, allowed);
      if (!fault.empty()) {
        faults.push_back("head " + std::to_string(head) + ", query row " + std::to_string(row) + " " + fault);
      }
    }
  }
  return faults;
}

}  // namespace openmsa::judge
