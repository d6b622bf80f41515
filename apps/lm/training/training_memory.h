// The memory of a training run, asked for before it begins.
#pragma once

#include <cstdint>

#include "lm/model/config.h"
#include "lm/training/training_options.h"

namespace openmsa::lm {

/// Bytes that a trainer of such a model holds after a step: weights, gradients and moments, the activations of all
/// layers, logits, working memory. Text and threads are not counted.
std::uint64_t training_bytes(const ModelConfig& config, const TrainingOptions& options);

/// InputError with both figures where that is more than there is.
void require_training_memory(const ModelConfig& config, const TrainingOptions& options);

}  // namespace openmsa::lm
