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
  lm::ModelConfig deeper = tiny_config();
  deeper.layers.emplace_back();
  EXPECT_THROW(lm::converted_state(directory.path(), deeper, {}), io::InputError);
}

}  // namespace
}  // namespace openmsa::test
