#include "lm/model/attention_layer.h"

#include <algorithm>

#include "lm/ops/linear.h"

namespace openmsa::lm {
namespace {

void scale(float factor, std::vector<float>& values) {
  for (float& value : values) value *= factor;
}

/// target += factor * values
void add_scaled(float factor, const std::vector<float>& values, std::vector<float>& target) {
  for (std::size_t i = 0; i < target.size(); ++i) target[i] += factor * values[i];
}

}  // namespace

AttentionLayer::AttentionLayer(const ModelConfig& config, std::size_t layer, const ParameterLayout& layout,
                               const std::string& prefix)
    : layer_(layer),
      hidden_(config.hidden_size),
      topk_(config.topk),
      eps_(static_cast<float>(config.rms_norm_eps)),
      v_proj_(layout.index_of(prefix + "v_proj.weight")),
      o_proj_(layout.index_of(prefix + "o_proj.weight")) {
  const auto projection = [&](std::int64_t heads, std::int64_t dim, const std::string& name) {
    return Projection{heads, dim, layout.index_of(prefix + name + "_proj.weight"),
                      layout.index_of(prefix + name + "_norm.weight")};
  };
  q_ = projection(config.num_heads_q, config.head_dim, "q");
  k_ = projection(config.num_heads_kv, config.head_dim, "k");
  if (config.layers[layer].attention == AttentionKind::kSparse) {
    indexer_ = Indexer{projection(config.num_heads_kv, config.index_dim, "indexer.q"),
                       projection(1, config.index_dim, "indexer.k")};
  }
}

void AttentionLayer::forward(const Weights& weights, const RotaryTable& rotary, Attention& attention, Phase phase,
                             const Sequences& sequences, const float* x, float* y,
                             AttentionActivations& activations) const {
  const std::int64_t tokens = sequences.num_tokens();
  const bool index = is_sparse() && phase != Phase::kDense;
  resize(tokens, index, activations);
  project(q_, weights, rotary, sequences, x, activations.q_projected, activations.q);
  project(k_, weights, rotary, sequences, x, activations.k_projected, activations.k);
  linear({tokens, hidden_, k_.heads * k_.dim}, x, weights.matrix(v_proj_), activations.v.data());
  if (index) {
    project(indexer_->q, weights, rotary, sequences, x, activations.index_q_projected, activations.index_q);
    project(indexer_->k, weights, rotary, sequences, x, activations.index_k_projected, activations.index_k);
  }
  attention.attend(layer_, index ? phase : Phase::kDense, sequences, activations);
  round_to(weights.precision(), activations.o);
  linear({tokens, q_.heads * q_.dim, hidden_}, activations.o.data(), weights.matrix(o_proj_), y, Write::kAdd);
}

double AttentionLayer::backward(const Parameters& weights, const RotaryTable& rotary, PackedAttention& attention,
                                Phase phase, const Sequences& sequences, const KlOptions& kl, const float* x,
                                const float* d_y, const AttentionActivations& activations, float* d_x,
                                Parameters& gradients, AttentionGradients& scratch) const {
  const std::int64_t tokens = sequences.num_tokens();
  const bool index = is_sparse() && phase != Phase::kDense;
  resize(tokens, index, kl.to_teacher, scratch);
  const LinearShape output{tokens, q_.heads * q_.dim, hidden_};
  linear_backward_weight(output, d_y, activations.o.data(), gradients[o_proj_]);
  linear_backward_input(output, d_y, weights[o_proj_], scratch.d_o.data());
  attention.backward(index ? phase : Phase::kDense, sequences, activations, scratch);

  double kl_loss = 0.0;
  if (index) {
    kl_loss = attention.kl_loss_backward(phase, sequences, activations, kl.to_teacher, scratch);
    const auto weight = static_cast<float>(kl.weight);
    if (kl.to_teacher) {
      add_scaled(weight, scratch.d_q_teacher, scratch.d_q);
      add_scaled(weight, scratch.d_k_teacher, scratch.d_k);
    }
    scale(weight, scratch.d_index_q);
    scale(weight, scratch.d_index_k);
    project_backward(indexer_->q, weights, rotary, sequences, x, activations.index_q_projected, scratch.d_index_q,
                     gradients);
    project_backward(indexer_->k, weights, rotary, sequences, x, activations.index_k_projected, scratch.d_index_k,
                     gradients);
  }

  project_backward(q_, weights, rotary, sequences, x, activations.q_projected, scratch.d_q, gradients);
  project_backward(k_, weights, rotary, sequences, x, activations.k_projected, scratch.d_k, gradients);
  const LinearShape value{tokens, hidden_, k_.heads * k_.dim};
  linear_backward_weight(value, scratch.d_v.data(), x, gradients[v_proj_]);
  linear_backward_input(value, scratch.d_v.data(), weights[v_proj_], d_x);
  add_to_input(q_, weights, tokens, scratch.d_q, d_x);
  add_to_input(k_, weights, tokens, scratch.d_k, d_x);
  if (index && kl.index_to_hidden) {
    add_to_input(indexer_->q, weights, tokens, scratch.d_index_q, d_x);
    add_to_input(indexer_->k, weights, tokens, scratch.d_index_k, d_x);
  }
  return kl_loss;
}

void AttentionLayer::project(const Projection& projection, const Weights& weights, const RotaryTable& rotary,
                             const Sequences& sequences, const float* x, std::vector<float>& projected,
                             std::vector<float>& result) const {
  const std::int64_t tokens = sequences.num_tokens();
  linear({tokens, hidden_, projection.heads * projection.dim}, x, weights.matrix(projection.weight), projected.data());
  rms_norm({tokens * projection.heads, projection.dim, eps_}, projected.data(), weights.vector(projection.norm),
           result.data());
  round_to(weights.precision(), result);
  rotary.rotate(weights.precision(), result.data(), projection.heads, projection.dim, sequences.positions);
}

void AttentionLayer::project_backward(const Projection& projection, const Parameters& weights,
                                      const RotaryTable& rotary, const Sequences& sequences, const float* x,
                                      const std::vector<float>& projected, std::vector<float>& d_result,
                                      Parameters& gradients) const {
  const std::int64_t tokens = sequences.num_tokens();
  rotary.rotate_back(d_result.data(), projection.heads, projection.dim, sequences.positions);
  rms_norm_backward({tokens * projection.heads, projection.dim, eps_}, projected.data(), weights[projection.norm],
                    d_result.data(), d_result.data(), gradients[projection.norm]);
  linear_backward_weight({tokens, hidden_, projection.heads * projection.dim}, d_result.data(), x,
                         gradients[projection.weight]);
}

void AttentionLayer::add_to_input(const Projection& projection, const Parameters& weights, std::int64_t tokens,
                                  const std::vector<float>& d_projected, float* d_x) const {
  linear_backward_input({tokens, hidden_, projection.heads * projection.dim}, d_projected.data(),
                        weights[projection.weight], d_x, Write::kAdd);
}

void AttentionLayer::resize(std::int64_t tokens, bool index, AttentionActivations& activations) const {
  const auto size = [&](std::int64_t row) { return static_cast<std::size_t>(tokens * row); };
  activations.q_projected.resize(size(q_.heads * q_.dim));
  activations.q.resize(size(q_.heads * q_.dim));
  activations.o.resize(size(q_.heads * q_.dim));
  activations.k_projected.resize(size(k_.heads * k_.dim));
  activations.k.resize(size(k_.heads * k_.dim));
  activations.v.resize(size(k_.heads * k_.dim));
  activations.lse.resize(size(q_.heads));
  if (!index) return;
  activations.index_q_projected.resize(size(indexer_->q.heads * indexer_->q.dim));
  activations.index_q.resize(size(indexer_->q.heads * indexer_->q.dim));
  activations.index_k_projected.resize(size(indexer_->k.dim));
  activations.index_k.resize(size(indexer_->k.dim));
  activations.topk_indices.resize(size(k_.heads * topk_));
}

void AttentionLayer::resize(std::int64_t tokens, bool index, bool teacher, AttentionGradients& gradients) const {
  const auto q_size = static_cast<std::size_t>(tokens * q_.heads * q_.dim);
  const auto kv_size = static_cast<std::size_t>(tokens * k_.heads * k_.dim);
  gradients.d_o.resize(q_size);
  gradients.d_q.resize(q_size);
  gradients.d_k.resize(kv_size);
  gradients.d_v.resize(kv_size);
  if (!index) return;
  gradients.d_index_q.resize(static_cast<std::size_t>(tokens * indexer_->q.heads * indexer_->q.dim));
  gradients.d_index_k.resize(static_cast<std::size_t>(tokens * indexer_->k.dim));
  if (!teacher) return;
  gradients.d_q_teacher.resize(q_size);
  gradients.d_k_teacher.resize(kv_size);
}

}  // namespace openmsa::lm
