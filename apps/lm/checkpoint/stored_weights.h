// The weights of a checkpoint folder, left where they are mapped.
#pragma once

#include <filesystem>

#include "lm/model/weights.h"

namespace openmsa::lm {

/// bf16 and fp32 matrices are used as they are stored; norms, biases and matrices of other floating-point types become
/// fp32 copies. Activations are bf16 where the embedding is. InputError: a tensor that is missing, or has the wrong
/// shape or type; or, before any weight is read, the memory that they need where there is less.
Weights load_weights(const std::filesystem::path& folder, std::shared_ptr<const ParameterLayout> layout);

}  // namespace openmsa::lm
