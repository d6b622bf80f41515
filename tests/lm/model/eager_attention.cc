#include "lm/model/eager_attention.h"

#include <algorithm>
#include <cmath>

#include "lm/ops/precision.h"

namespace openmsa::test {

using lm::bf16_rounded;

void EagerAttention::attend(std::size_t, lm::Phase phase, const lm::Sequences& sequences,
                            lm::AttentionActivations& activations) {
  const std::int64_t tokens = sequences.num_tokens();
  if (phase == lm::Phase::kSparse) select(tokens, activations);
  const std::int64_t group_size = config_.num_heads_q / config_.num_heads_kv;
  for (std::int64_t query = 0; query < tokens; ++query) {
    for (std::int64_t group = 0; group < config_.num_heads_kv; ++group) {
      const auto keys = visible(phase, query, group, tokens, activations);
      for (std::int64_t h = 0; h < group_size; ++h) attend_row(query, group * group_size + h, keys, activations);
    }
  }
}

void EagerAttention::select(std::int64_t tokens, lm::AttentionActivations& activations) const {
  Config config = lm::attention_config(config_);
  config.max_total_q = tokens;
  config.max_seqlen_k = tokens;
  Tensors tensors = openmsa::tensors();
  tensors.index_q = view(activations.index_q.data(), {tokens, config_.num_heads_kv, config_.index_dim});
  tensors.index_k = view(activations.index_k.data(), {tokens, config_.index_dim});
  tensors.topk_indices = view(activations.topk_indices.data(), {config_.num_heads_kv, tokens, config_.topk});
  Workspace workspace;
  Plan(config).run(OPENMSA_OP_SELECT_BLOCKS, tensors, workspace);
}

std::vector<std::int64_t> EagerAttention::visible(lm::Phase phase, std::int64_t query, std::int64_t group,
                                                  std::int64_t tokens,
                                                  const lm::AttentionActivations& activations) const {
  const std::int32_t* chosen = activations.topk_indices.data() + (group * tokens + query) * config_.topk;
  std::vector<std::int64_t> keys;
  for (std::int64_t key = 0; key <= query; ++key) {
    const auto block = static_cast<std::int32_t>(key / config_.block_size);
    if (phase != lm::Phase::kSparse || std::find(chosen, chosen + config_.topk, block) != chosen + config_.topk) {
      keys.push_back(key);
    }
  }
  return keys;
}

void EagerAttention::attend_row(std::int64_t query, std::int64_t head, const std::vector<std::int64_t>& keys,
                                lm::AttentionActivations& activations) const {
  const std::int64_t dim = config_.head_dim;
  const std::int64_t kv_row = config_.num_heads_kv * dim;
  const std::int64_t offset = head / (config_.num_heads_q / config_.num_heads_kv) * dim;
  const std::int64_t row = (query * config_.num_heads_q + head) * dim;
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));

  std::vector<float> p;
  for (const std::int64_t key : keys) {
    float score = 0.0f;
    for (std::int64_t c = 0; c < dim; ++c) {
      score += activations.q[row + c] * activations.k[key * kv_row + offset + c];
    }
    p.push_back(bf16_rounded(bf16_rounded(score) * scale));
  }
  const float largest = *std::ranges::max_element(p);
  float sum = 0.0f;
  for (float& value : p) sum += value = std::exp(value - largest);
  std::vector<float> o(static_cast<std::size_t>(dim), 0.0f);
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const float probability = bf16_rounded(p[i] / sum);
    for (std::int64_t c = 0; c < dim; ++c) o[c] += probability * activations.v[keys[i] * kv_row + offset + c];
  }
  std::ranges::transform(o, activations.o.begin() + row, bf16_rounded);
}

}  // namespace openmsa::test
