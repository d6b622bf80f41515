// Under which names checkpoints of MiniMax-M3's kind store a parameter.
#pragma once

#include <string>
#include <vector>

#include "lm/model/parameters.h"

namespace openmsa::lm {

/// Tensors whose rows, one after the other, are the parameter's.
using StoredNames = std::vector<std::string>;

/// The ways in which checkpoints hold the parameter, likeliest first:
///   transformers' text models    model.layers.1.mlp.experts.gate_up_proj
///   transformers' whole models   model.language_model.layers.1.mlp.experts.gate_up_proj
///   as published                 language_model.model.layers.1.block_sparse_moe.experts.0.w1.weight, ...0.w3.weight,
///                                ...1.w1.weight and so on: gates and ups apart, each expert for itself
std::vector<StoredNames> stored_names(const Parameter& parameter);

}  // namespace openmsa::lm
