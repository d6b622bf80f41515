// Geometry of a decoder, as config.json of type minimax_m3_vl_text or minimax_m3_vl (its text part) describes it.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <vector>

namespace openmsa::lm {

enum class AttentionKind { kFull, kSparse };
enum class MlpKind { kDense, kMoe };

struct LayerConfig {
  AttentionKind attention = AttentionKind::kFull;
  MlpKind mlp = MlpKind::kDense;
};

struct ModelConfig {
  int vocab_size = 256;
  int hidden_size = 128;
  int num_heads_q = 4;
  int num_heads_kv = 2;
  int head_dim = 64;
  int rotary_dim = 32;  // leading channels of each head that are rotated
  double rope_theta = 10000.0;
  bool bf16_rope_frequencies = false;  // as after casting a whole model to bf16, its buffers included
  double rms_norm_eps = 1e-6;
  double initializer_range = 0.02;  // standard deviation of fresh matrices

  int dense_intermediate_size = 384;
  double swiglu_alpha = 1.702;
  double swiglu_limit = 7.0;

  // Sparse layers. There is one index head per KV head.
  int index_dim = 64;
  int block_size = 32;
  int topk = 8;
  int num_init_blocks = 0;
  int num_local_blocks = 1;

  // Mixture-of-experts layers; 0 where there are none.
  int num_experts = 0;
  int num_experts_per_token = 0;
  int expert_intermediate_size = 0;
  int shared_intermediate_size = 0;
  double routed_scaling_factor = 1.0;

  std::vector<LayerConfig> layers;

  bool has_sparse_layers() const;
  bool has_moe_layers() const;
};

/// InputError: names the key, what was expected and what was found.
ModelConfig config_from_json(const nlohmann::json& json);
nlohmann::json config_to_json(const ModelConfig& config);

/// The contradictions that config_from_json refuses, for a config from elsewhere.
void check_config(const ModelConfig& config);

}  // namespace openmsa::lm
