#include "lm/model/config.h"

#include <algorithm>
#include <string>

#include "lm/model/config_keys.h"

namespace openmsa::lm {
namespace {

/// Keeps every parameter's size, and the sum over all layers, far from 2^63.
void check_sizes(const ModelConfig& config) {
  constexpr std::int64_t kMaxWidth = std::int64_t{1} << 24;
  constexpr double kMaxElements = 1LL << 48;
  const auto check_width = [](const char* key, std::int64_t heads, std::int64_t dim) {
    if (heads * dim > kMaxWidth) {
      refuse(key, "at most " + std::to_string(kMaxWidth) + " channels of all heads", std::to_string(heads * dim));
    }
  };
  check_width("num_attention_heads", config.num_heads_q, config.head_dim);
  if (config.has_sparse_layers()) check_width("index_n_heads", config.num_heads_kv, config.index_dim);
  const double experts = 2.0 * config.num_experts * config.expert_intermediate_size * config.hidden_size;
  if (experts > kMaxElements) refuse("num_local_experts", "at most 2^48 weights in a layer", std::to_string(experts));
}

}  // namespace

bool ModelConfig::has_sparse_layers() const {
  return std::ranges::any_of(layers, [](const auto& layer) { return layer.attention == AttentionKind::kSparse; });
}

bool ModelConfig::has_moe_layers() const {
  return std::ranges::any_of(layers, [](const auto& layer) { return layer.mlp == MlpKind::kMoe; });
}

void check_config(const ModelConfig& config) {
  const auto text = [](int value) { return std::to_string(value); };
  if (config.layers.empty()) refuse("num_hidden_layers", "at least 1", "0");
  check_sizes(config);
  if (config.num_heads_q % config.num_heads_kv != 0) {
    refuse("num_attention_heads", "a multiple of num_key_value_heads = " + text(config.num_heads_kv),
           text(config.num_heads_q));
  }
  if (config.rotary_dim < 2 || config.rotary_dim % 2 != 0 || config.rotary_dim > config.head_dim) {
    refuse("rope_parameters.partial_rotary_factor", "an even number of rotated channels, at most head_dim",
           text(config.rotary_dim));
  }
  if (config.has_sparse_layers() && config.index_dim < config.rotary_dim) {
    refuse("index_head_dim", "at least the " + text(config.rotary_dim) + " rotated channels", text(config.index_dim));
  }
  if (config.has_moe_layers() && config.num_experts_per_token > config.num_experts) {
    refuse("num_experts_per_tok", "at most num_local_experts = " + text(config.num_experts),
           text(config.num_experts_per_token));
  }
}

}  // namespace openmsa::lm
