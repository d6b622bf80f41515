#include "lm/use/selection_map.h"

#include <algorithm>

#include "io/error.h"
#include "lm/model/decoder.h"

namespace openmsa::lm {
namespace {

using nlohmann::ordered_json;

constexpr std::int64_t kMaxQueries = 128;

/// topk_indices [num_heads_kv, tokens, topk] of one group, thinned out.
ordered_json group_rows(const ModelConfig& config, std::int64_t tokens, const std::int32_t* indices) {
  ordered_json rows = ordered_json::array();
  const std::int64_t count = std::min(tokens, kMaxQueries);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t query = (i + 1) * tokens / count - 1;
    ordered_json blocks = ordered_json::array();
    for (std::int64_t slot = 0; slot < config.topk; ++slot) {
      const std::int32_t block = indices[query * config.topk + slot];
      if (block >= 0) blocks.push_back(block);
    }
    rows.push_back({{"query", query}, {"blocks", blocks}});
  }
  return rows;
}

}  // namespace

ordered_json selection_map(const Model& model, const tokenizer::Tokenizer& tokenizer, std::string_view window,
                           int num_threads) {
  const ModelConfig& config = model.config;
  if (!config.has_sparse_layers()) throw io::InputError("the model has no sparse layers, so it selects no blocks");
  const std::vector<std::int32_t> inputs = tokenizer.encode(window);
  check_tokens(inputs, config.vocab_size);
  const auto tokens = static_cast<std::int64_t>(inputs.size());
  PackedAttention attention(config, {1, tokens, tokens}, num_threads);
  Decoder decoder(config, model.weights.layout(), Decoder::Keep::kActivations);
  decoder.forward(model.weights, attention, Phase::kSparse, inputs, packed_sequences({tokens}));

  ordered_json layers = ordered_json::array();
  for (const std::size_t layer : decoder.sparse_layers()) {
    const std::int32_t* indices = decoder.attention_activations(layer).topk_indices.data();
    ordered_json groups = ordered_json::array();
    for (std::int64_t group = 0; group < config.num_heads_kv; ++group) {
      groups.push_back({{"rows", group_rows(config, tokens, indices + group * tokens * config.topk)}});
    }
    layers.push_back({{"layer", layer}, {"groups", groups}});
  }
  return {{"block_size", config.block_size},
          {"topk", config.topk},
          {"seqlen", tokens},
          {"text", std::string(window)},
          {"layers", layers}};
}

}  // namespace openmsa::lm
