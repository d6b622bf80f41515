// A whole training run: steps, log, checkpoints.
#pragma once

#include <filesystem>
#include <functional>

#include "lm/training/trainer.h"

namespace openmsa::lm {

/// Name of the file in a run's folder that resumes it.
inline constexpr const char* kStateFile = "training.safetensors";

/// Runs the steps that `state` still has to do. `directory` gets log.jsonl, the model (config.json, model.safetensors)
/// and the state, the latter two at every checkpoint and at the end. `on_step` is called after every step.
void train(TrainingState state, const std::filesystem::path& directory, int num_threads,
           const std::function<void(const StepFigures&)>& on_step);

}  // namespace openmsa::lm
