#include <gtest/gtest.h>

#include "support/compare.h"

namespace openmsa::test {
namespace {

TEST(AppendKv, RowsGoToTheEndOfTheirSequence) {
  // Pages of 4. Sequence 0 has 6 tokens, of which the last 2 are new: tokens 4 and 5, entries 0 and 1 of its page 2.
  // Sequence 1 is padding (seqlens_k = 0). Sequence 2 has 1 token, new: entry 0 of its page 0.
  Layer layer;
  layer.shape = {.num_heads_q = 1, .num_heads_kv = 1, .head_dim = 8, .index_dim = 8, .block_size = 8, .page_size = 4};
  layer.config = openmsa::config();
  layer.config.backend = OPENMSA_BACKEND_REFERENCE;
  layer.config.num_heads_q = layer.config.num_heads_kv = 1;
  layer.config.head_dim = layer.config.index_dim = layer.config.block_size = 8;
  layer.config.page_size = 4;
  layer.config.max_batch = 3;
  layer.config.max_total_q = 8;
  layer.config.max_seqlen_k = 16;
  std::mt19937_64 random(7);
  layer.tensors = {{"cu_seqlens_q", int_buffer({0, 2, 3, 4})},
                   {"seqlens_k", int_buffer({6, 0, 1})},
                   {"block_table", int_buffer({1, 2, -1, -1, 0, -1}, {3, 2})},
                   {"k", random_buffer(OPENMSA_FLOAT32, {4, 1, 8}, random)},
                   {"v", random_buffer(OPENMSA_FLOAT32, {4, 1, 8}, random)},
                   {"index_k", random_buffer(OPENMSA_FLOAT32, {4, 8}, random)}};
  TensorMap caches = {{"k_cache", Buffer(OPENMSA_FLOAT32, {3, 4, 1, 8})},
                      {"v_cache", Buffer(OPENMSA_FLOAT32, {3, 4, 1, 8})},
                      {"index_k_cache", Buffer(OPENMSA_FLOAT32, {3, 4, 8})}};
  for (auto& [name, cache] : caches) cache.fill(-1);
  run_into(layer, OPENMSA_OP_APPEND_KV, caches);

  const std::map<std::int64_t, std::int64_t> row_of_slot = {{8, 0}, {9, 1}, {0, 3}};  // page * 4 + entry -> row
  for (const char* name : {"k", "v", "index_k"}) {
    const Buffer& cache = caches.at(std::string(name) + "_cache");
    for (std::int64_t slot = 0; slot < 12; ++slot) {
      for (std::int64_t c = 0; c < 8; ++c) {
        const auto row = row_of_slot.find(slot);
        const double expected = row == row_of_slot.end() ? -1 : layer.tensors.at(name)[row->second * 8 + c];
        EXPECT_EQ(cache[slot * 8 + c], expected) << name << " slot " << slot;
      }
    }
  }
}

}  // namespace
}  // namespace openmsa::test
