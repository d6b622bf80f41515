#include "lm/model/kv_cache.h"

#include <numeric>
#include <utility>

#include "lm/ops/random.h"

namespace openmsa::lm {
namespace {

Config paged_config(const ModelConfig& model, std::int64_t capacity, std::int64_t max_chunk, int num_threads) {
  Config config = attention_config(model);
  config.page_size = model.block_size;
  config.max_batch = 1;
  config.max_total_q = max_chunk;
  config.max_seqlen_k = capacity;
  config.num_threads = num_threads;
  return config;
}

/// Channels of one token in one layer.
struct RowSizes {
  std::size_t kv;  // of k, and as many of v
  std::size_t index;
};

RowSizes row_sizes(const ModelConfig& config, const LayerConfig& layer) {
  const bool sparse = layer.attention == AttentionKind::kSparse;
  return {static_cast<std::size_t>(config.num_heads_kv * config.head_dim),
          sparse ? static_cast<std::size_t>(config.index_dim) : 0};
}

std::vector<std::int32_t> shuffled_pages(std::int64_t count, std::uint64_t seed) {
  std::vector<std::int32_t> pages(static_cast<std::size_t>(count));
  std::iota(pages.begin(), pages.end(), 0);
  Random random(seed);
  for (std::size_t i = pages.size(); i > 1; --i) std::swap(pages[i - 1], pages[random.below(i)]);
  return pages;
}

}  // namespace

KvCache::KvCache(const ModelConfig& config, std::int64_t capacity, std::int64_t max_chunk, int num_threads,
                 std::uint64_t seed)
    : config_(config),
      num_pages_((capacity + config.block_size - 1) / config.block_size),
      block_table_(shuffled_pages(num_pages_, seed)),
      plan_(paged_config(config, capacity, max_chunk, num_threads)) {
  const auto tokens = static_cast<std::size_t>(num_pages_ * config.block_size);
  for (const LayerConfig& layer : config.layers) {
    const RowSizes row = row_sizes(config, layer);
    layers_.push_back({std::vector<float>(tokens * row.kv), std::vector<float>(tokens * row.kv),
                       std::vector<float>(tokens * row.index)});
  }
}

std::uint64_t KvCache::bytes(const ModelConfig& config, std::int64_t capacity) {
  std::uint64_t floats = 0;
  for (const LayerConfig& layer : config.layers) {
    const RowSizes row = row_sizes(config, layer);
    floats += static_cast<std::uint64_t>(capacity) * (2 * row.kv + row.index);
  }
  return floats * sizeof(float);
}

void KvCache::attend(std::size_t layer, Phase phase, const Sequences& sequences, AttentionActivations& activations) {
  const std::int64_t tokens = sequences.num_tokens();
  const std::int32_t seqlen_k = sequences.positions.back() + 1;
  Pages& pages = layers_[layer];

  Tensors cache = openmsa::tensors();
  cache.cu_seqlens_q = view(sequences.cu_seqlens.data(), {2});
  cache.seqlens_k = view(&seqlen_k, {1});
  cache.block_table = view(block_table_.data(), {1, num_pages_});
  cache.k_cache = view(pages.k.data(), {num_pages_, config_.block_size, config_.num_heads_kv, config_.head_dim});
  cache.v_cache = view(pages.v.data(), {num_pages_, config_.block_size, config_.num_heads_kv, config_.head_dim});
  if (phase == Phase::kSparse) {
    cache.index_k_cache = view(pages.index_k.data(), {num_pages_, config_.block_size, config_.index_dim});
  }

  Tensors append = cache;
  append.k = view(activations.k.data(), {tokens, config_.num_heads_kv, config_.head_dim});
  append.v = view(activations.v.data(), {tokens, config_.num_heads_kv, config_.head_dim});
  if (phase == Phase::kSparse) append.index_k = view(activations.index_k.data(), {tokens, config_.index_dim});
  plan_.run(OPENMSA_OP_APPEND_KV, append, workspace_);

  Tensors attend = cache;
  attend.q = view(activations.q.data(), {tokens, config_.num_heads_q, config_.head_dim});
  attend.o = view(activations.o.data(), {tokens, config_.num_heads_q, config_.head_dim});
  if (phase == Phase::kSparse) {
    attend.index_q = view(activations.index_q.data(), {tokens, config_.num_heads_kv, config_.index_dim});
  }
  plan_.run(phase == Phase::kSparse ? OPENMSA_OP_MSA_ATTENTION : OPENMSA_OP_DENSE_ATTENTION, attend, workspace_);
}

}  // namespace openmsa::lm
