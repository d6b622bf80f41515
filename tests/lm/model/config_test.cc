#include "lm/model/config.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "io/error.h"
#include "lm/support.h"

namespace openmsa::test {
namespace {

using nlohmann::json;

lm::ModelConfig moe_config() {
  lm::ModelConfig config = tiny_moe_config(4);
  config.num_init_blocks = 1;
  return config;
}

TEST(Config, SurvivesARoundTrip) {
  const json written = lm::config_to_json(moe_config());
  EXPECT_EQ(written.at("model_type"), "minimax_m3_vl_text");
  EXPECT_EQ(written.at("layer_types"), json({"full_attention", "minimax_m3_sparse"}));
  EXPECT_EQ(written.at("mlp_layer_types"), json({"dense", "sparse"}));
  EXPECT_EQ(lm::config_to_json(lm::config_from_json(written)), written);
}

/// transformers rotates head_dim * partial_rotary_factor channels and does not read rotary_dim.
TEST(Config, RotaryFollowsThePartialFactor) {
  json object = lm::config_to_json(tiny_config());
  EXPECT_EQ(lm::config_from_json(object).rotary_dim, 4);
  object["rope_parameters"].erase("partial_rotary_factor");
  EXPECT_EQ(lm::config_from_json(object).rotary_dim, 8);
  object["partial_rotary_factor"] = 0.25;
  EXPECT_EQ(lm::config_from_json(object).rotary_dim, 2);
}

TEST(Config, RefusesWhatItCannotServe) {
  const json good = lm::config_to_json(moe_config());
  const auto refused = [&](const char* key, const json& value) {
    json bad = good;
    bad[key] = value;
    try {
      lm::config_from_json(bad);
      ADD_FAILURE() << key << " = " << value << " was accepted";
    } catch (const io::InputError& error) {
      EXPECT_NE(std::string(error.what()).find(key), std::string::npos) << error.what();
    }
  };
  refused("model_type", "llama");
  refused("model_type", 7);
  refused("tie_word_embeddings", true);
  refused("quantization_config", {{"quant_method", "fp8"}});
  refused("num_hidden_layers", 1 << 20);
  refused("num_attention_heads", 1 << 22);
  refused("hidden_size", 0);
  refused("hidden_size", 1.5);
  refused("hidden_size", "64");
  refused("hidden_size", 1e300);
  refused("head_dim", -1);
  refused("num_attention_heads", 3);
  refused("layer_types", "full_attention");
  refused("layer_types", json({"full_attention"}));
  refused("layer_types", json({"full_attention", "sliding_attention"}));
  refused("index_n_heads", 1);
  refused("index_head_dim", 2);
  refused("num_experts_per_tok", 5);
  refused("rope_parameters", "none");
  refused("rope_parameters", {{"rope_type", "yarn"}});
  refused("rope_parameters", {{"rope_type", "default"}, {"frequency_dtype", "int8"}});
  refused("rope_parameters", {{"rope_type", "default"}, {"partial_rotary_factor", 1.5}});
  EXPECT_THROW(lm::config_from_json(json::array()), io::InputError);
  for (const char* key : {"hidden_size", "num_hidden_layers", "num_local_experts", "index_topk_blocks"}) {
    json bad = good;
    bad.erase(key);
    EXPECT_THROW(lm::config_from_json(bad), io::InputError) << key;
  }
}

/// The older form, in which the model was first published.
TEST(Config, ReadsOlderKeys) {
  json object = lm::config_to_json(moe_config());
  const json today = object;
  object["sparse_attention_config"] = {{"sparse_num_index_heads", 2},    {"sparse_index_dim", 8},
                                       {"sparse_block_size", 8},         {"sparse_topk_blocks", 2},
                                       {"sparse_local_block", 1},        {"sparse_init_block", 1},
                                       {"sparse_attention_freq", {0, 1}}};
  object["moe_layer_freq"] = {0, 1};
  object["rope_theta"] = object["rope_parameters"]["rope_theta"];
  object["partial_rotary_factor"] = object["rope_parameters"]["partial_rotary_factor"];
  for (const char* key : {"layer_types", "mlp_layer_types", "index_n_heads", "index_head_dim", "index_block_size",
                          "index_topk_blocks", "index_local_blocks", "index_init_blocks", "rope_parameters"}) {
    object.erase(key);
  }
  EXPECT_EQ(lm::config_to_json(lm::config_from_json(object)), today);
  object["layer_types"] = nullptr;  // as good as absent
  EXPECT_EQ(lm::config_to_json(lm::config_from_json(object)), today);
  EXPECT_EQ(lm::config_to_json(lm::config_from_json({{"model_type", "minimax_m3_vl"}, {"text_config", object}})),
            today);

  object["sparse_attention_config"]["sparse_attention_freq"] = {0, 2};
  EXPECT_THROW(lm::config_from_json(object), io::InputError);
  object["sparse_attention_config"] = 5;
  EXPECT_THROW(lm::config_from_json(object), io::InputError);
}

/// As transformers reads a file without the lists: full attention and experts everywhere.
TEST(Config, LayerListsMayBeAbsent) {
  json object = lm::config_to_json(moe_config());
  object.erase("layer_types");
  object.erase("mlp_layer_types");
  const lm::ModelConfig config = lm::config_from_json(object);
  EXPECT_FALSE(config.has_sparse_layers());
  for (const lm::LayerConfig& layer : config.layers) EXPECT_EQ(layer.mlp, lm::MlpKind::kMoe);
}

}  // namespace
}  // namespace openmsa::test
