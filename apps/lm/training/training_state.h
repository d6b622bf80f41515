// Everything that a training run is at one moment: where it starts, what a checkpoint holds, what resumes.
#pragma once

#include <cstdint>
#include <filesystem>

#include "lm/model/config.h"
#include "lm/model/parameters.h"
#include "lm/training/adamw.h"
#include "lm/training/training_options.h"

namespace openmsa::lm {

struct TrainingState {
  ModelConfig config;
  TrainingOptions options;
  Parameters weights;
  AdamwState optimizer;
  std::int64_t step = 0;  // steps done
};

/// Fresh weights. Here and below: InputError with both figures where training needs more memory than there is.
TrainingState fresh_state(const ModelConfig& config, const TrainingOptions& options);

/// The weights of the model in `directory` under `config`, which may add or drop index branches; new index parameters
/// are fresh. InputError when anything else is missing.
TrainingState converted_state(const std::filesystem::path& directory, const ModelConfig& config,
                              const TrainingOptions& options);

/// One file, so that weights, moments and step always belong together.
void save_state(const std::filesystem::path& path, const TrainingState& state);
TrainingState load_state(const std::filesystem::path& path);

}  // namespace openmsa::lm
