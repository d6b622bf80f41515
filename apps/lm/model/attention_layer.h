// Grouped-query attention with per-head norm and partial rotary embedding, and the index branch of a sparse layer.
#pragma once

#include <optional>
#include <string>

#include "lm/model/attention_ops.h"
#include "lm/model/parameters.h"
#include "lm/model/rotary.h"
#include "lm/model/weights.h"
#include "lm/ops/rms_norm.h"

namespace openmsa::lm {

/// How L_KL enters training. Both stop-gradients of the method are on by default.
struct KlOptions {
  double weight = 1.0;           // lambda
  bool index_to_hidden = false;  // let L_KL flow into the hidden state that enters the index projections
  bool to_teacher = false;       // let L_KL flow into q and k through the teacher's probabilities
};

class AttentionLayer {
 public:
  /// `prefix` of the parameters' names: "model.layers.0.self_attn."
  AttentionLayer(const ModelConfig& config, std::size_t layer, const ParameterLayout& layout,
                 const std::string& prefix);

  bool is_sparse() const { return indexer_.has_value(); }

  /// Adds the layer's result for x [tokens, hidden] to y. A full layer takes every phase as kDense.
  void forward(const Weights& weights, const RotaryTable& rotary, Attention& attention, Phase phase,
               const Sequences& sequences, const float* x, float* y, AttentionActivations& activations) const;

  /// Writes d_x, adds the weights' gradients and those of kl.weight * L_KL; returns L_KL (0 without an index branch).
  double backward(const Parameters& weights, const RotaryTable& rotary, PackedAttention& attention, Phase phase,
                  const Sequences& sequences, const KlOptions& kl, const float* x, const float* d_y,
                  const AttentionActivations& activations, float* d_x, Parameters& gradients,
                  AttentionGradients& scratch) const;

 private:
  /// Projection, norm and rotary embedding of one of q, k, index_q and index_k.
  struct Projection {
    std::int64_t heads;
    std::int64_t dim;
    ParameterIndex weight;
    ParameterIndex norm;
  };
  struct Indexer {
    Projection q;
    Projection k;
  };

  void project(const Projection& projection, const Weights& weights, const RotaryTable& rotary,
               const Sequences& sequences, const float* x, std::vector<float>& projected,
               std::vector<float>& result) const;
  /// Adds the gradients of the projection's weights; `d_result` becomes the gradient of `projected`.
  void project_backward(const Projection& projection, const Parameters& weights, const RotaryTable& rotary,
                        const Sequences& sequences, const float* x, const std::vector<float>& projected,
                        std::vector<float>& d_result, Parameters& gradients) const;
  /// d_x += d_projected W
  void add_to_input(const Projection& projection, const Parameters& weights, std::int64_t tokens,
                    const std::vector<float>& d_projected, float* d_x) const;
  void resize(std::int64_t tokens, bool index, AttentionActivations& activations) const;
  void resize(std::int64_t tokens, bool index, bool teacher, AttentionGradients& gradients) const;

  std::size_t layer_;
  std::int64_t hidden_;
  std::int64_t topk_;
  float eps_;
  Projection q_;
  Projection k_;
  ParameterIndex v_proj_;
  ParameterIndex o_proj_;
  std::optional<Indexer> indexer_;
};

}  // namespace openmsa::lm
