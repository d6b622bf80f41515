#include "lm/training/training_state.h"

#include <charconv>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "io/error.h"
#include "io/json_file.h"
#include "io/safetensors.h"
#include "lm/checkpoint/checkpoint.h"
#include "lm/training/training_memory.h"

namespace openmsa::lm {
namespace {

TrainingState empty_state(const ModelConfig& config, const TrainingOptions& options) {
  check_config(config);
  require_training_memory(config, options);
  const auto layout = std::make_shared<const ParameterLayout>(config);
  return {config, options, Parameters(layout), AdamwState(layout)};
}

void copy_parameter(const Weights& from, ParameterIndex index, const Parameter& parameter, Parameters& to) {
  const std::vector<std::int64_t>& shape = from.layout().parameters()[index].shape;
  if (shape != parameter.shape) {
    throw io::InputError(parameter.name + ": expected shape " + nlohmann::json(parameter.shape).dump() + ", got " +
                         nlohmann::json(shape).dump());
  }
  const WeightMatrix& matrix = from.matrix(index);
  float* values = to.of(parameter).data();
  const std::int64_t rows = static_cast<std::int64_t>(parameter.size) / matrix.in;
  for (std::int64_t row = 0; row < rows; ++row) matrix.copy_row(row, values + row * matrix.in);
}

/// A value in the file's metadata, bounded as that of a whole file is.
nlohmann::json json_of(const std::map<std::string, std::string>& metadata, const char* key) try {
  return io::parse_json(metadata.at(key));
} catch (const io::InputError& error) {
  throw io::InputError(std::string(key) + ": " + error.what());
}

/// Steps that a run has done, as its file says.
std::int64_t steps_done(const std::string& text, const TrainingOptions& options) {
  std::int64_t step = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), step);
  if (error != std::errc() || end != text.data() + text.size() || step < 0 || step > options.steps) {
    throw io::InputError("step: expected an integer from 0 to " + std::to_string(options.steps) + ", got " + text);
  }
  return step;
}

}  // namespace

TrainingState fresh_state(const ModelConfig& config, const TrainingOptions& options) {
  TrainingState state = empty_state(config, options);
  initialize(config, options.seed, state.weights);
  return state;
}

TrainingState converted_state(const std::filesystem::path& directory, const ModelConfig& config,
                              const TrainingOptions& options) {
  TrainingState state = empty_state(config, options);
  const Model model = load_model(directory);
  std::map<std::string_view, ParameterIndex> stored;
  for (const Parameter& parameter : model.weights.layout().parameters()) stored.emplace(parameter.name, stored.size());
  for (const Parameter& parameter : state.weights.layout().parameters()) {
    if (const auto found = stored.find(parameter.name); found != stored.end()) {
      copy_parameter(model.weights, found->second, parameter, state.weights);
    } else if (parameter.is_index()) {
      initialize(config, options.seed, parameter, state.weights);
    } else {
      throw io::InputError("the checkpoint lacks the tensor " + parameter.name);
    }
  }
  return state;
}

void save_state(const std::filesystem::path& path, const TrainingState& state) {
  io::SafetensorsWriter writer;
  add_parameters(state.weights, "weights.", writer);
  add_parameters(state.optimizer.m, "m.", writer);
  add_parameters(state.optimizer.v, "v.", writer);
  writer.set_metadata("config", config_to_json(state.config).dump());
  writer.set_metadata("options", options_to_json(state.options).dump());
  writer.set_metadata("step", std::to_string(state.step));
  writer.write(path);
}

TrainingState load_state(const std::filesystem::path& path) {
  const io::SafetensorsFile file(path);
  try {
    const auto& metadata = file.metadata();
    TrainingState state =
        empty_state(config_from_json(json_of(metadata, "config")), options_from_json(json_of(metadata, "options")));
    state.step = steps_done(metadata.at("step"), state.options);
    read_all_parameters(file, "weights.", state.weights);
    read_all_parameters(file, "m.", state.optimizer.m);
    read_all_parameters(file, "v.", state.optimizer.v);
    return state;
  } catch (const io::InputError& error) {
    throw io::InputError(path.string() + ": " + error.what());
  } catch (const std::exception& error) {
    throw io::InputError(path.string() + ": no training state: " + error.what());
  }
}

}  // namespace openmsa::lm
