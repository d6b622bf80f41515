#include "lm/model/attention_ops.h"

#include <numeric>
#include <utility>

#include "lm/model/fp8_index.h"

namespace openmsa::lm {
namespace {

double mean(const std::vector<float>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

Config packed_config(const ModelConfig& model, const PackedAttention::Capacity& capacity, int num_threads,
                     openmsa_backend backend) {
  Config config = attention_config(model);
  config.backend = backend;
  config.max_batch = capacity.batch;
  config.max_total_q = capacity.tokens;
  config.max_seqlen_k = capacity.seqlen;
  config.num_threads = num_threads;
  return config;
}

}  // namespace

Config attention_config(const ModelConfig& model) {
  Config config = openmsa::config();
  config.dtype = OPENMSA_FLOAT32;
  config.num_heads_q = model.num_heads_q;
  config.num_heads_kv = model.num_heads_kv;
  config.head_dim = model.head_dim;
  config.index_dim = model.index_dim;
  config.block_size = model.block_size;
  config.topk = model.topk;
  config.num_init_blocks = model.num_init_blocks;
  config.num_local_blocks = model.num_local_blocks;
  return config;
}

PackedAttention::PackedAttention(const ModelConfig& config, const Capacity& capacity, int num_threads,
                                 openmsa_backend backend)
    : config_(config), plan_(packed_config(config, capacity, num_threads, backend)) {}

void PackedAttention::run(Part part, openmsa_op op, const Tensors& tensors) {
  const TimedPart timed(part);
  plan_.run(op, tensors, workspace_);
}

Tensors PackedAttention::keys_and_queries(const Sequences& sequences, const AttentionActivations& activations) const {
  const std::int64_t tokens = sequences.num_tokens();
  Tensors tensors = openmsa::tensors();
  tensors.cu_seqlens_q = view(sequences.cu_seqlens.data(), {sequences.batch() + 1});
  tensors.cu_seqlens_k = tensors.cu_seqlens_q;
  tensors.q = view(activations.q.data(), {tokens, config_.num_heads_q, config_.head_dim});
  tensors.k = view(activations.k.data(), {tokens, config_.num_heads_kv, config_.head_dim});
  return tensors;
}

void PackedAttention::set_selection(std::vector<std::int32_t> topk_indices) { selection_ = std::move(topk_indices); }

void PackedAttention::attend(std::size_t, Phase phase, const Sequences& sequences, AttentionActivations& activations) {
  const std::int64_t tokens = sequences.num_tokens();
  Tensors tensors = keys_and_queries(sequences, activations);
  tensors.v = view(activations.v.data(), {tokens, config_.num_heads_kv, config_.head_dim});
  tensors.o = view(activations.o.data(), {tokens, config_.num_heads_q, config_.head_dim});
  tensors.lse = view(activations.lse.data(), {tokens, config_.num_heads_q});
  if (phase != Phase::kSparse) return run(Part::kForward, OPENMSA_OP_DENSE_ATTENTION, tensors);
  if (!selection_.empty()) activations.topk_indices = selection_;
  tensors.topk_indices = view(activations.topk_indices.data(), {config_.num_heads_kv, tokens, config_.topk});
  if (!selection_.empty()) return run(Part::kForward, OPENMSA_OP_SPARSE_ATTENTION, tensors);
  tensors.index_q = view(activations.index_q.data(), {tokens, config_.num_heads_kv, config_.index_dim});
  tensors.index_k = view(activations.index_k.data(), {tokens, config_.index_dim});
  run(Part::kForward, OPENMSA_OP_MSA_ATTENTION, tensors);
}

void PackedAttention::backward(Phase phase, const Sequences& sequences, const AttentionActivations& activations,
                               AttentionGradients& gradients) {
  const std::int64_t tokens = sequences.num_tokens();
  Tensors tensors = keys_and_queries(sequences, activations);
  tensors.v = view(activations.v.data(), {tokens, config_.num_heads_kv, config_.head_dim});
  tensors.o = view(activations.o.data(), {tokens, config_.num_heads_q, config_.head_dim});
  tensors.lse = view(activations.lse.data(), {tokens, config_.num_heads_q});
  tensors.d_o = view(gradients.d_o.data(), {tokens, config_.num_heads_q, config_.head_dim});
  tensors.d_q = view(gradients.d_q.data(), {tokens, config_.num_heads_q, config_.head_dim});
  tensors.d_k = view(gradients.d_k.data(), {tokens, config_.num_heads_kv, config_.head_dim});
  tensors.d_v = view(gradients.d_v.data(), {tokens, config_.num_heads_kv, config_.head_dim});
  if (phase != Phase::kSparse) return run(Part::kBackward, OPENMSA_OP_DENSE_ATTENTION_BACKWARD, tensors);
  tensors.topk_indices = view(activations.topk_indices.data(), {config_.num_heads_kv, tokens, config_.topk});
  run(Part::kBackward, OPENMSA_OP_SPARSE_ATTENTION_BACKWARD, tensors);
}

Tensors PackedAttention::kl_tensors(Phase phase, const Sequences& sequences,
                                    const AttentionActivations& activations) const {
  const std::int64_t tokens = sequences.num_tokens();
  Tensors tensors = keys_and_queries(sequences, activations);
  tensors.lse = view(activations.lse.data(), {tokens, config_.num_heads_q});
  tensors.index_q = view(activations.index_q.data(), {tokens, config_.num_heads_kv, config_.index_dim});
  tensors.index_k = view(activations.index_k.data(), {tokens, config_.index_dim});
  if (phase == Phase::kSparse) {
    tensors.topk_indices = view(activations.topk_indices.data(), {config_.num_heads_kv, tokens, config_.topk});
  }
  return tensors;
}

double PackedAttention::kl_loss(Phase phase, const Sequences& sequences, const AttentionActivations& activations) {
  float loss = 0.0f;
  Tensors tensors = kl_tensors(phase, sequences, activations);
  tensors.kl_loss = view(&loss, {1});
  run(Part::kKlLoss, OPENMSA_OP_KL_LOSS, tensors);
  return loss;
}

double PackedAttention::kl_loss_backward(Phase phase, const Sequences& sequences,
                                         const AttentionActivations& activations, bool to_teacher,
                                         AttentionGradients& gradients) {
  const std::int64_t tokens = sequences.num_tokens();
  float loss = 0.0f;
  Tensors tensors = kl_tensors(phase, sequences, activations);
  tensors.kl_loss = view(&loss, {1});
  tensors.d_index_q = view(gradients.d_index_q.data(), {tokens, config_.num_heads_kv, config_.index_dim});
  tensors.d_index_k = view(gradients.d_index_k.data(), {tokens, config_.index_dim});
  if (to_teacher) {
    tensors.d_q = view(gradients.d_q_teacher.data(), {tokens, config_.num_heads_q, config_.head_dim});
    tensors.d_k = view(gradients.d_k_teacher.data(), {tokens, config_.num_heads_kv, config_.head_dim});
  }
  run(Part::kKlLoss, OPENMSA_OP_KL_LOSS, tensors);
  return loss;
}

Recall PackedAttention::recall(const Sequences& sequences, const AttentionActivations& activations,
                               IndexKeys index_keys) {
  const std::int64_t rows = sequences.cu_seqlens[1];
  const auto figures = static_cast<std::size_t>(rows * config_.num_heads_kv);
  std::vector<std::int32_t> topk_indices(figures * static_cast<std::size_t>(config_.topk));
  std::vector<float> block_recall(figures);
  std::vector<float> score_recall(figures);
  const Tensor selection = view(topk_indices.data(), {config_.num_heads_kv, rows, config_.topk});

  if (index_keys == IndexKeys::kFp8) {
    select_with_fp8_index(config_, rows, activations, selection);
  } else {
    Tensors select = openmsa::tensors();
    select.index_q = view(activations.index_q.data(), {rows, config_.num_heads_kv, config_.index_dim});
    select.index_k = view(activations.index_k.data(), {rows, config_.index_dim});
    select.topk_indices = selection;
    run(Part::kForward, OPENMSA_OP_SELECT_BLOCKS, select);
  }

  Tensors measure = openmsa::tensors();
  measure.q = view(activations.q.data(), {rows, config_.num_heads_q, config_.head_dim});
  measure.k = view(activations.k.data(), {rows, config_.num_heads_kv, config_.head_dim});
  measure.topk_indices = selection;
  measure.block_recall = view(block_recall.data(), {config_.num_heads_kv, rows});
  measure.score_recall = view(score_recall.data(), {config_.num_heads_kv, rows});
  run(Part::kForward, OPENMSA_OP_BLOCK_RECALL, measure);
  return {mean(block_recall), mean(score_recall)};
}

}  // namespace openmsa::lm
