#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>

#include "lm/model/config.h"
#include "lm/model/config_keys.h"

namespace openmsa::lm {
namespace {

using nlohmann::json;

constexpr int kMaxSize = 1 << 24;  // keeps every product of two sizes far from 2^63
constexpr int kMaxLayers = 4096;
constexpr int kMaxExperts = 4096;

int integer(const json& object, const char* key, int least, int most = kMaxSize) {
  if (!object.contains(key)) refuse(key, "an integer", "nothing");
  const json& value = object.at(key);
  if (!value.is_number_integer() || value.get<double>() < least || value.get<double>() > most) {
    refuse(key, "an integer from " + std::to_string(least) + " to " + std::to_string(most), value.dump());
  }
  return value.get<int>();
}

int integer_or(const json& object, const char* key, int least, int fallback) {
  return object.contains(key) ? integer(object, key, least) : fallback;
}

double positive_or(const json& object, const char* key, double fallback) {
  if (!object.contains(key)) return fallback;
  const json& value = object.at(key);
  if (!value.is_number() || !(value.get<double>() > 0)) refuse(key, "a positive number", value.dump());
  return value.get<double>();
}

/// Whether each layer's entry in the list `key` is `chosen` rather than `other`.
std::vector<bool> layer_choices(const json& object, const char* key, const char* chosen, const char* other,
                                std::size_t num_layers) {
  const std::string expected = "a list of " + std::to_string(num_layers) + " entries, " + chosen + " or " + other;
  if (!object.contains(key)) refuse(key, expected, "nothing");
  const json& list = object.at(key);
  if (!list.is_array() || list.size() != num_layers) refuse(key, expected, list.dump());
  std::vector<bool> result;
  for (const json& entry : list) {
    if (entry != chosen && entry != other) refuse(key, expected, entry.dump());
    result.push_back(entry == chosen);
  }
  return result;
}

std::vector<LayerConfig> layers_from_json(const json& object) {
  const auto num_layers = static_cast<std::size_t>(integer(object, "num_hidden_layers", 1, kMaxLayers));
  const auto sparse = layer_choices(object, "layer_types", kSparseAttention, kFullAttention, num_layers);
  const auto moe = layer_choices(object, "mlp_layer_types", "sparse", "dense", num_layers);
  std::vector<LayerConfig> layers(num_layers);
  for (std::size_t i = 0; i < num_layers; ++i) {
    layers[i].attention = sparse[i] ? AttentionKind::kSparse : AttentionKind::kFull;
    layers[i].mlp = moe[i] ? MlpKind::kMoe : MlpKind::kDense;
  }
  return layers;
}

/// Rotated channels follow partial_rotary_factor, all of them without it. The key rotary_dim of the file only repeats
/// the result: transformers does not read it.
void read_rotary(const json& object, ModelConfig& config) {
  const json rope = object.value("rope_parameters", json::object());
  if (!rope.is_object()) refuse("rope_parameters", "an object", rope.dump());
  const json type = rope.value("rope_type", json("default"));
  if (type != "default") refuse("rope_parameters.rope_type", "\"default\"", type.dump());
  config.rope_theta = positive_or(rope, "rope_theta", positive_or(object, "rope_theta", 5000000.0));
  const double factor = positive_or(rope, "partial_rotary_factor", positive_or(object, "partial_rotary_factor", 1.0));
  config.rotary_dim = static_cast<int>(std::min(factor, 2.0) * config.head_dim);
  const json frequency = rope.value("frequency_dtype", json("float32"));
  if (frequency != "float32" && frequency != "bfloat16") {
    refuse("rope_parameters.frequency_dtype", "\"float32\" or \"bfloat16\"", frequency.dump());
  }
  config.bf16_rope_frequencies = frequency == "bfloat16";
}

void read_index(const json& object, ModelConfig& config) {
  const int heads = integer(object, "index_n_heads", 1);
  if (heads != config.num_heads_kv) {
    refuse("index_n_heads", "num_key_value_heads = " + std::to_string(config.num_heads_kv), std::to_string(heads));
  }
  config.index_dim = integer(object, "index_head_dim", 1);
  config.block_size = integer(object, "index_block_size", 1);
  config.topk = integer(object, "index_topk_blocks", 1);
  config.num_local_blocks = integer_or(object, "index_local_blocks", 0, 1);
  config.num_init_blocks = integer_or(object, "index_init_blocks", 0, 0);
}

void read_experts(const json& object, ModelConfig& config) {
  config.num_experts = integer(object, "num_local_experts", 1, kMaxExperts);
  config.num_experts_per_token = integer(object, "num_experts_per_tok", 1);
  config.expert_intermediate_size = integer(object, "intermediate_size", 1);
  config.shared_intermediate_size = integer(object, "shared_intermediate_size", 1);
  config.routed_scaling_factor = positive_or(object, "routed_scaling_factor", 1.0);
}

void write_index(const ModelConfig& config, json& object) {
  object["index_n_heads"] = config.num_heads_kv;
  object["index_head_dim"] = config.index_dim;
  object["index_block_size"] = config.block_size;
  object["index_topk_blocks"] = config.topk;
  object["index_local_blocks"] = config.num_local_blocks;
  object["index_init_blocks"] = config.num_init_blocks;
}

void write_experts(const ModelConfig& config, json& object) {
  object["num_local_experts"] = config.num_experts;
  object["num_experts_per_tok"] = config.num_experts_per_token;
  object["intermediate_size"] = config.expert_intermediate_size;
  object["shared_intermediate_size"] = config.shared_intermediate_size;
  object["routed_scaling_factor"] = config.routed_scaling_factor;
}

}  // namespace

ModelConfig config_from_json(const json& file) {
  const json object = text_part(file);
  if (object.value("tie_word_embeddings", json(false)) != false) refuse("tie_word_embeddings", "false", "true");
  ModelConfig config;
  config.vocab_size = integer(object, "vocab_size", 2);
  config.hidden_size = integer(object, "hidden_size", 1);
  config.num_heads_q = integer(object, "num_attention_heads", 1);
  config.num_heads_kv = integer(object, "num_key_value_heads", 1);
  config.head_dim = integer(object, "head_dim", 1);
  config.rms_norm_eps = positive_or(object, "rms_norm_eps", 1e-6);
  config.initializer_range = positive_or(object, "initializer_range", 0.02);
  config.dense_intermediate_size = integer(object, "dense_intermediate_size", 1);
  config.swiglu_alpha = positive_or(object, "swiglu_alpha", 1.702);
  config.swiglu_limit = positive_or(object, "swiglu_limit", 7.0);
  config.layers = layers_from_json(object);
  read_rotary(object, config);
  if (config.has_sparse_layers()) read_index(object, config);
  if (config.has_moe_layers()) read_experts(object, config);
  check_config(config);
  return config;
}

json config_to_json(const ModelConfig& config) {
  json layer_types = json::array();
  json mlp_types = json::array();
  for (const LayerConfig& layer : config.layers) {
    layer_types.push_back(layer.attention == AttentionKind::kSparse ? kSparseAttention : kFullAttention);
    mlp_types.push_back(layer.mlp == MlpKind::kMoe ? "sparse" : "dense");
  }
  json object = {{"model_type", kModelType},
                 {"vocab_size", config.vocab_size},
                 {"hidden_size", config.hidden_size},
                 {"hidden_act", "silu"},
                 {"num_hidden_layers", config.layers.size()},
                 {"num_attention_heads", config.num_heads_q},
                 {"num_key_value_heads", config.num_heads_kv},
                 {"head_dim", config.head_dim},
                 {"rotary_dim", config.rotary_dim},
                 {"rms_norm_eps", config.rms_norm_eps},
                 {"initializer_range", config.initializer_range},
                 {"dense_intermediate_size", config.dense_intermediate_size},
                 {"swiglu_alpha", config.swiglu_alpha},
                 {"swiglu_limit", config.swiglu_limit},
                 {"tie_word_embeddings", false},
                 {"layer_types", layer_types},
                 {"mlp_layer_types", mlp_types}};
  object["rope_parameters"] = {{"rope_type", "default"},
                               {"rope_theta", config.rope_theta},
                               {"partial_rotary_factor", static_cast<double>(config.rotary_dim) / config.head_dim}};
  if (config.bf16_rope_frequencies) object["rope_parameters"]["frequency_dtype"] = "bfloat16";
  if (config.has_sparse_layers()) write_index(config, object);
  if (config.has_moe_layers()) write_experts(config, object);
  return object;
}

}  // namespace openmsa::lm
