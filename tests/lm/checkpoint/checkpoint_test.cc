#include "lm/checkpoint/checkpoint.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "io/error.h"
#include "io/json_file.h"
#include "lm/support.h"
#include "lm/training/training_state.h"
#include "support/temporary_directory.h"

namespace openmsa::test {
namespace {

TEST(Checkpoint, ModelSurvivesARoundTrip) {
  const TemporaryDirectory directory;
  const lm::ModelConfig config = tiny_config();
  const lm::Parameters weights = random_weights(config, 1);
  lm::save_model(directory.path() / "model", config, weights);
  const lm::Model loaded = lm::load_model(directory.path() / "model");
  EXPECT_EQ(lm::config_to_json(loaded.config), lm::config_to_json(config));
  EXPECT_TRUE(std::ranges::equal(values_of(loaded.weights), values_of(weights)));
}

TEST(Checkpoint, RefusesMissingAndMisshapenTensors) {
  const TemporaryDirectory directory;
  const lm::ModelConfig config = tiny_config();
  lm::save_model(directory.path(), config, random_weights(config, 1));
  lm::ModelConfig wider = config;
  wider.dense_intermediate_size += 1;
  io::write_json(directory / "config.json", lm::config_to_json(wider));
  EXPECT_THROW(lm::load_model(directory.path()), io::InputError);
  lm::ModelConfig deeper = config;
  deeper.layers.emplace_back();
  io::write_json(directory / "config.json", lm::config_to_json(deeper));
  EXPECT_THROW(lm::load_model(directory.path()), io::InputError);
  EXPECT_THROW(lm::load_model(directory.path() / "absent"), io::InputError);
}

TEST(Checkpoint, DenseModelConvertsWithFreshIndexBranches) {
  const TemporaryDirectory directory;
  lm::ModelConfig dense = tiny_config();
  dense.layers[1].attention = lm::AttentionKind::kFull;
  const lm::Parameters weights = random_weights(dense, 1);
  lm::save_model(directory.path(), dense, weights);

  const lm::TrainingState state = lm::converted_state(directory.path(), tiny_config(), {});
  for (const lm::Parameter& parameter : state.weights.layout().parameters()) {
    if (parameter.is_index()) {
      const auto values = state.weights.of(parameter);
      EXPECT_EQ(parameter.is_matrix(), std::ranges::any_of(values, [](float value) { return value != 0.0f; }));
    } else {
      EXPECT_TRUE(std::ranges::equal(state.weights.of(parameter), weights.of(weights.layout().at(parameter.name))));
    }
  }

  const io::SafetensorsFile whole(directory / "model.safetensors");  // mapped, so that it can be read when it is gone
  nlohmann::json shard_of = nlohmann::json::object();
  for (const std::string shard : {"0.safetensors", "1.safetensors"}) {
    io::SafetensorsWriter writer;
    for (const auto& [name, tensor] : whole.tensors()) {
      if (name.size() % 2 != (shard.front() == '1')) continue;
      writer.add(name, tensor.type, tensor.shape, tensor.data);
      shard_of[name] = shard;
    }
    writer.write(directory / shard);
  }
  io::write_json(directory / "model.safetensors.index.json", {{"weight_map", shard_of}});
  std::filesystem::remove(directory / "model.safetensors");
  const lm::TrainingState sharded = lm::converted_state(directory.path(), tiny_config(), {});
  EXPECT_TRUE(std::ranges::equal(sharded.weights.values(), state.weights.values()));

  lm::ModelConfig deeper = tiny_config();
  deeper.layers.emplace_back();
  EXPECT_THROW(lm::converted_state(directory.path(), deeper, {}), io::InputError);
}

}  // namespace
}  // namespace openmsa::test
