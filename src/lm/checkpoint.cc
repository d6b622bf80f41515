#include "lm/checkpoint.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "io/error.h"
#include "io/json_file.h"
#include "lm/stored_weights.h"

namespace openmsa::lm {
namespace {

constexpr const char* kConfigFile = "config.json";
constexpr const char* kWeightsFile = "model.safetensors";

std::string text(const std::vector<std::int64_t>& shape) { return nlohmann::json(shape).dump(); }

}  // namespace

ModelConfig load_config(const std::filesystem::path& directory) {
  return config_from_json(io::read_json(directory / kConfigFile));
}

Model load_model(const std::filesystem::path& directory) {
  const ModelConfig config = load_config(directory);
  return {config, load_weights(directory, std::make_shared<const ParameterLayout>(config))};
}

void save_model(const std::filesystem::path& directory, const ModelConfig& config, const Parameters& weights) {
  std::filesystem::create_directories(directory);
  io::SafetensorsWriter writer;
  add_parameters(weights, "", writer);
  writer.set_metadata("format", "pt");  // what transformers asks for
  writer.write(directory / kWeightsFile);
  io::write_json(directory / kConfigFile, config_to_json(config));
}

std::vector<const Parameter*> read_parameters(const io::SafetensorsFile& file, const std::string& prefix,
                                              Parameters& values) {
  std::vector<const Parameter*> absent;
  for (const Parameter& parameter : values.layout().parameters()) {
    const std::string name = prefix + parameter.name;
    if (!file.contains(name)) {
      absent.push_back(&parameter);
      continue;
    }
    const io::StoredTensor& stored = file.at(name);
    if (stored.shape != parameter.shape) {
      throw io::InputError(name + ": expected shape " + text(parameter.shape) + ", got " + text(stored.shape));
    }
    std::ranges::copy(stored.to_float(), values.of(parameter).begin());
  }
  return absent;
}

void read_all_parameters(const io::SafetensorsFile& file, const std::string& prefix, Parameters& values) {
  const auto absent = read_parameters(file, prefix, values);
  if (!absent.empty()) throw io::InputError("the checkpoint lacks the tensor " + prefix + absent.front()->name);
}

void add_parameters(const Parameters& values, const std::string& prefix, io::SafetensorsWriter& writer) {
  for (const Parameter& parameter : values.layout().parameters()) {
    writer.add(prefix + parameter.name, io::ElementType::kF32, parameter.shape, values.of(parameter).data());
  }
}

}  // namespace openmsa::lm
