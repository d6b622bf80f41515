// The options of a training run; stored with its state, so that a resumed run does the same.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "lm/model/attention_layer.h"

namespace openmsa::lm {

struct TrainingOptions {
  std::vector<std::string> text;  // files and folders
  std::int64_t steps = 300;
  // Sequences of one step. A few long windows are too alike to learn from, so short ones from many places join them.
  std::int64_t batch = 1;
  std::int64_t seqlen = 2048;
  std::int64_t short_batch = 32;
  std::int64_t short_seqlen = 128;
  std::uint64_t seed = 1;

  double lr = 4e-3;
  double min_lr = 2e-4;
  std::int64_t lr_warmup = 20;  // steps
  double weight_decay = 0.1;
  double clip = 1.0;  // largest norm of the gradient

  KlOptions kl;
  std::int64_t warmup_steps = 60;  // of the indexer: dense attention, L_KL over the whole history

  std::int64_t log_every = 1;         // steps
  std::int64_t recall_every = 20;     // steps; 0: never
  std::int64_t checkpoint_every = 0;  // steps; 0: at the end only
};

/// What a number of the options may be, on the command line and in a stored state.
struct NumberRange {
  const char* name;  // "lr_warmup"; "kl_weight" of KlOptions
  bool is_integer;
  double least;
  double most;
};
const NumberRange& range_of(std::string_view name);

nlohmann::json options_to_json(const TrainingOptions& options);
/// InputError: an option that is missing, of another type or outside its range.
TrainingOptions options_from_json(const nlohmann::json& json);

/// Lengths of the sequences of one step, the long ones first.
std::vector<std::int64_t> sequence_lengths(const TrainingOptions& options);

/// Learning rate of step `step`, from 1: up to lr over lr_warmup steps, then down to min_lr along half a cosine.
double learning_rate(const TrainingOptions& options, std::int64_t step);

}  // namespace openmsa::lm
