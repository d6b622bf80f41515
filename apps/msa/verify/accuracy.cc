#include "msa/verify/accuracy.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>

#include "core/dtype.h"
#include "core/tolerance.h"

namespace openmsa::cli {

std::vector<double> to_doubles(const openmsa_tensor& tensor) {
  std::int64_t count = 1;
  for (int d = 0; d < tensor.rank; ++d) count *= tensor.shape[d];
  std::vector<double> values(static_cast<std::size_t>(count));
  core::visit_dtype(tensor.dtype, [&]<class T>(T) {
    const T* data = static_cast<const T*>(tensor.data);
    for (double& value : values) value = core::to_float(*data++);
  });
  return values;
}

bool is_best(const Config& config, const float* scores, std::int64_t num_blocks, const std::int32_t* chosen) {
  const std::int64_t count = std::min<std::int64_t>(config.topk, num_blocks);
  float largest = 0;
  float best_left = -std::numeric_limits<float>::infinity();
  float worst_chosen = std::numeric_limits<float>::infinity();
  for (std::int64_t b = 0; b < num_blocks; ++b) {
    const bool is_forced = b >= num_blocks - config.num_local_blocks || b < config.num_init_blocks;
    const bool is_chosen = std::find(chosen, chosen + count, b) != chosen + count;
    if (is_forced && !is_chosen && count < num_blocks) return false;
    largest = std::max(largest, std::abs(scores[b]));
    if (!is_chosen) best_left = std::max(best_left, scores[b]);
    if (is_chosen && !is_forced) worst_chosen = std::min(worst_chosen, scores[b]);
  }
  const bool is_distinct = std::adjacent_find(chosen, chosen + count, std::greater_equal<>()) == chosen + count;
  return is_distinct && worst_chosen >= best_left - largest * core::tolerance(config).score;
}

void OutputError::check(const char* what, openmsa_dtype dtype) const {
  const double relative = std::sqrt(error_ / norm_), allowed = core::tolerance(dtype).o;
  if (relative <= allowed) return;  // also refuses NaN
  throw std::runtime_error(std::string(what) + " attention is wrong: relative error " + std::to_string(relative) +
                           ", allowed " + std::to_string(allowed));
}

}  // namespace openmsa::cli
