// The attention of one layer through openmsa's API: what stands between the projections and the output projection.
#pragma once

#include <cstdint>
#include <openmsa/openmsa.hpp>
#include <vector>

#include "lm/model/config.h"
#include "lm/model/sequences.h"
#include "lm/ops/profile.h"

namespace openmsa::lm {

/// How a sparse layer attends. A full layer always attends densely.
enum class Phase {
  kDense,   // densely, without an index branch
  kWarmup,  // densely, while the index branch learns from the whole history
  kSparse   // over the kv_blocks that the index branch selects
};

/// One layer's tensors of a forward pass; index_* are empty where there is no index branch.
struct AttentionActivations {
  std::vector<float> q_projected;        // [tokens, num_heads_q, head_dim] before norm and rotary embedding
  std::vector<float> k_projected;        // [tokens, num_heads_kv, head_dim]
  std::vector<float> index_q_projected;  // [tokens, num_heads_kv, index_dim]
  std::vector<float> index_k_projected;  // [tokens, index_dim]
  std::vector<float> q, k, v, index_q, index_k;
  std::vector<std::int32_t> topk_indices;  // [num_heads_kv, tokens, topk]
  std::vector<float> o;                    // [tokens, num_heads_q, head_dim]
  std::vector<float> lse;                  // [tokens, num_heads_q]
};

/// Gradients of the tensors of the same names.
struct AttentionGradients {
  std::vector<float> d_o, d_q, d_k, d_v, d_index_q, d_index_k;
  std::vector<float> d_q_teacher, d_k_teacher;  // what L_KL alone sends to q and k, when it may
};

struct Recall {
  double block;  // means over queries and groups
  double score;
};

/// How the index branch keeps its keys: as they are, or as an fp8 cache holds them, with one scale per token.
enum class IndexKeys { kFp32, kFp8 };

/// The attention of all layers; the decoder does not know where keys live.
class Attention {
 public:
  virtual ~Attention() = default;
  /// Fills o (and what the backward pass needs) of layer number `layer` from q, k, v and, in kSparse, the index
  /// tensors.
  virtual void attend(std::size_t layer, Phase phase, const Sequences& sequences,
                      AttentionActivations& activations) = 0;
};

/// Whole sequences with contiguous keys: training and evaluation.
class PackedAttention : public Attention {
 public:
  struct Capacity {
    std::int64_t batch;
    std::int64_t tokens;
    std::int64_t seqlen;
  };
  PackedAttention(const ModelConfig& config, const Capacity& capacity, int num_threads,
                  openmsa_backend backend = OPENMSA_BACKEND_CPU);

  /// From now on kSparse attends to these kv_blocks, [num_heads_kv, tokens, topk], instead of those that the index
  /// branch would choose; for measurements.
  void set_selection(std::vector<std::int32_t> topk_indices);

  void attend(std::size_t layer, Phase phase, const Sequences& sequences, AttentionActivations& activations) override;

  /// d_q, d_k, d_v from d_o.
  void backward(Phase phase, const Sequences& sequences, const AttentionActivations& activations,
                AttentionGradients& gradients);

  /// L_KL over the phase's tokens.
  double kl_loss(Phase phase, const Sequences& sequences, const AttentionActivations& activations);

  /// L_KL and its gradients: d_index_q, d_index_k and, with `to_teacher`, d_q_teacher and d_k_teacher.
  double kl_loss_backward(Phase phase, const Sequences& sequences, const AttentionActivations& activations,
                          bool to_teacher, AttentionGradients& gradients);

  /// Health of the selection that the index branch makes (or would make) for the first sequence.
  Recall recall(const Sequences& sequences, const AttentionActivations& activations,
                IndexKeys index_keys = IndexKeys::kFp32);

 private:
  Tensors keys_and_queries(const Sequences& sequences, const AttentionActivations& activations) const;
  Tensors kl_tensors(Phase phase, const Sequences& sequences, const AttentionActivations& activations) const;
  void run(Part part, openmsa_op op, const Tensors& tensors);

  ModelConfig config_;
  Plan plan_;
  Workspace workspace_;
  std::vector<std::int32_t> selection_;  // empty: the index branch's own
};

/// The plan's view of a model: geometry and selection, CPU backend, fp32.
Config attention_config(const ModelConfig& config);

}  // namespace openmsa::lm
