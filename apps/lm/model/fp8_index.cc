#include "lm/model/fp8_index.h"

#include <numeric>

namespace openmsa::lm {

void select_with_fp8_index(const ModelConfig& model, std::int64_t rows, const AttentionActivations& activations,
                           const Tensor& topk_indices) {
  Config config = attention_config(model);
  config.index_dtype = OPENMSA_FLOAT8_E4M3;
  config.page_size = config.block_size;
  config.max_total_q = config.max_seqlen_k = rows;
  const Plan plan(config);

  const std::int64_t page_size = config.page_size, pages = (rows + page_size - 1) / page_size;
  const auto tokens = static_cast<std::size_t>(pages * page_size);
  const auto seqlen_k = static_cast<std::int32_t>(rows);
  std::vector<std::int32_t> block_table(static_cast<std::size_t>(pages));
  std::iota(block_table.begin(), block_table.end(), 0);
  std::vector<std::uint8_t> index_k_cache(tokens * static_cast<std::size_t>(model.index_dim));
  std::vector<float> index_k_scale(tokens);
  Tensors cached = openmsa::tensors();
  cached.seqlens_k = view(&seqlen_k, {1});
  cached.block_table = view(block_table.data(), {1, pages});
  cached.index_k_cache = view(index_k_cache.data(), OPENMSA_FLOAT8_E4M3, {pages, page_size, model.index_dim});
  cached.index_k_scale = view(index_k_scale.data(), {pages * page_size});

  // append_kv stores keys and values too; nothing reads those here.
  std::vector<float> k_cache(tokens * static_cast<std::size_t>(model.num_heads_kv * model.head_dim));
  std::vector<float> v_cache(k_cache.size());
  Tensors append = cached;
  append.k = view(activations.k.data(), {rows, model.num_heads_kv, model.head_dim});
  append.v = view(activations.v.data(), {rows, model.num_heads_kv, model.head_dim});
  append.index_k = view(activations.index_k.data(), {rows, model.index_dim});
  append.k_cache = view(k_cache.data(), {pages, page_size, model.num_heads_kv, model.head_dim});
  append.v_cache = view(v_cache.data(), {pages, page_size, model.num_heads_kv, model.head_dim});
  Workspace workspace;
  plan.run(OPENMSA_OP_APPEND_KV, append, workspace);

  Tensors select = cached;
  select.index_q = view(activations.index_q.data(), {rows, model.num_heads_kv, model.index_dim});
  select.topk_indices = topk_indices;
  plan.run(OPENMSA_OP_SELECT_BLOCKS, select, workspace);
}

}  // namespace openmsa::lm
