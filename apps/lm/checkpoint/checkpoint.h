// A model as a Hugging Face style directory: config.json, and model.safetensors or its shards with their index.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "io/safetensors.h"
#include "lm/model/config.h"
#include "lm/model/weights.h"

namespace openmsa::lm {

struct Model {
  ModelConfig config;
  Weights weights;
};

/// Maps the weights. bf16 and fp32 matrices are used where they lie; others become fp32 copies. InputError: what is
/// missing, has the wrong shape or type, or how much memory the model needs if that is more than there is.
Model load_model(const std::filesystem::path& directory);
ModelConfig load_config(const std::filesystem::path& directory);

/// The tokens that end a text, as generation_config.json or config.json say; none where neither does.
std::vector<std::int32_t> load_end_tokens(const std::filesystem::path& directory);

/// Creates the directory; each file appears whole or not at all. Weights are stored as F32.
void save_model(const std::filesystem::path& directory, const ModelConfig& config, const Parameters& weights);

/// Adds every parameter under prefix + name; `values` must live until the writer has written.
void add_parameters(const Parameters& values, const std::string& prefix, io::SafetensorsWriter& writer);

/// Reads every parameter from under prefix + name, converted to float; InputError where one is missing or its shape
/// differs.
void read_all_parameters(const io::SafetensorsFile& file, const std::string& prefix, Parameters& values);

}  // namespace openmsa::lm
