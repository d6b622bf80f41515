#include "lm/training/training_options.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>

namespace openmsa::lm {

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(KlOptions, weight, index_to_hidden, to_teacher)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(TrainingOptions, text, steps, batch, seqlen, short_batch, short_seqlen, seed, lr,
                                   min_lr, lr_warmup, weight_decay, clip, kl, warmup_steps, log_every, recall_every,
                                   checkpoint_every)

nlohmann::json options_to_json(const TrainingOptions& options) { return options; }

TrainingOptions options_from_json(const nlohmann::json& json) { return json.get<TrainingOptions>(); }

std::vector<std::int64_t> sequence_lengths(const TrainingOptions& options) {
  std::vector<std::int64_t> lengths(static_cast<std::size_t>(options.batch), options.seqlen);
  lengths.insert(lengths.end(), static_cast<std::size_t>(options.short_batch), options.short_seqlen);
  return lengths;
}

double learning_rate(const TrainingOptions& options, std::int64_t step) {
  if (step <= options.lr_warmup) return options.lr * static_cast<double>(step) / static_cast<double>(options.lr_warmup);
  const auto done = static_cast<double>(step - options.lr_warmup);
  const auto total = static_cast<double>(std::max<std::int64_t>(options.steps - options.lr_warmup, 1));
  return options.min_lr + (options.lr - options.min_lr) * 0.5 * (1.0 + std::cos(std::numbers::pi * done / total));
}

}  // namespace openmsa::lm
