// A whole training run: steps, log, checkpoints.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>

#include "lm/training/trainer.h"

namespace openmsa::lm {

/// Name of the file in a run's folder that resumes it.
inline constexpr const char* kStateFile = "training.safetensors";

/// A file in `directory` that a new run would replace; none where it may begin.
std::optional<std::string> earlier_run(const std::filesystem::path& directory);

/// Runs the steps that `state` still has to do and returns how many are done: all, or those before `stop`, which is
/// asked after every step, said so. `directory` gets log.jsonl, the model (config.json, model.safetensors) and the
/// state, the latter two at every checkpoint and at the end. A new run first removes those of an earlier one, so that a
/// folder never holds parts of two. `on_step` is called after every step. std::runtime_error when training diverges;
/// the last checkpoint stays.
std::int64_t train(
    TrainingState state, const std::filesystem::path& directory, int num_threads,
    const std::function<void(const StepFigures&)>& on_step, const std::function<bool()>& stop = [] { return false; });

}  // namespace openmsa::lm
