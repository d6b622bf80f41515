#include "lm/training/training_state.h"

#include <memory>
#include <nlohmann/json.hpp>

#include "io/error.h"
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

}  // namespace

TrainingState fresh_state(const ModelConfig& config, const TrainingOptions& options) {
  TrainingState state = empty_state(config, options);
  initialize(config, options.seed, state.weights);
  return state;
}

TrainingState converted_state(const std::filesystem::path& directory, const ModelConfig& config,
                              const TrainingOptions& options) {
  TrainingState state = empty_state(config, options);
  const io::SafetensorsFile file(directory / "model.safetensors");
  for (const Parameter* parameter : read_parameters(file, "", state.weights)) {
    if (!parameter->is_index()) throw io::InputError("the checkpoint lacks the tensor " + parameter->name);
    initialize(config, options.seed, *parameter, state.weights);
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
    TrainingState state = empty_state(config_from_json(nlohmann::json::parse(metadata.at("config"))),
                                      options_from_json(nlohmann::json::parse(metadata.at("options"))));
    state.step = std::stoll(metadata.at("step"));
    read_all_parameters(file, "weights.", state.weights);
    read_all_parameters(file, "m.", state.optimizer.m);
    read_all_parameters(file, "v.", state.optimizer.v);
    return state;
  } catch (const io::InputError&) {
    throw;
  } catch (const std::exception& error) {
    throw io::InputError(path.string() + ": no training state: " + error.what());
  }
}

}  // namespace openmsa::lm
