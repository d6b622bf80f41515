#include "lm/checkpoint/checkpoint.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "io/error.h"
#include "io/json_file.h"
#include "lm/checkpoint/stored_weights.h"
#include "lm/model/config_keys.h"

namespace openmsa::lm {
namespace {

constexpr const char* kConfigFile = "config.json";
constexpr const char* kWeightsFile = "model.safetensors";

std::string text(const std::vector<std::int64_t>& shape) { return nlohmann::json(shape).dump(); }

}  // namespace

ModelConfig load_config(const std::filesystem::path& directory) {
  return config_from_json(io::read_json(directory / kConfigFile));
}

std::vector<std::int32_t> load_end_tokens(const std::filesystem::path& directory) {
  nlohmann::json ends;
  if (const auto path = directory / "generation_config.json"; std::filesystem::exists(path)) {
    const nlohmann::json config = io::read_json(path);
    if (config.is_object()) ends = config.value("eos_token_id", nlohmann::json());
  }
  if (ends.is_null()) ends = text_part(io::read_json(directory / kConfigFile)).value("eos_token_id", nlohmann::json());
  if (ends.is_null()) return {};
  std::vector<std::int32_t> tokens;
  for (const nlohmann::json& end : ends.is_array() ? ends : nlohmann::json::array({ends})) {
    if (!end.is_number_integer() || end.get<double>() < 0 || end.get<double>() > 1 << 24) {
      throw io::InputError("config: eos_token_id: expected token numbers, got " + ends.dump());
    }
    tokens.push_back(end.get<std::int32_t>());
  }
  return tokens;
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

void read_all_parameters(const io::SafetensorsFile& file, const std::string& prefix, Parameters& values) {
  for (const Parameter& parameter : values.layout().parameters()) {
    const std::string name = prefix + parameter.name;
    if (!file.contains(name)) throw io::InputError("the checkpoint lacks the tensor " + name);
    const io::StoredTensor& stored = file.at(name);
    if (stored.shape != parameter.shape) {
      throw io::InputError(name + ": expected shape " + text(parameter.shape) + ", got " + text(stored.shape));
    }
    std::ranges::copy(stored.to_float(), values.of(parameter).begin());
  }
}

void add_parameters(const Parameters& values, const std::string& prefix, io::SafetensorsWriter& writer) {
  for (const Parameter& parameter : values.layout().parameters()) {
    writer.add(prefix + parameter.name, io::ElementType::kF32, parameter.shape, values.of(parameter).data());
  }
}

}  // namespace openmsa::lm
