// Keys of one growing sequence in pages, for prefill in chunks and decoding.
#pragma once

#include <vector>

#include "lm/model/attention_ops.h"

namespace openmsa::lm {

class KvCache : public Attention {
 public:
  /// Room for `capacity` tokens, of which at most `max_chunk` come at once. Pages are block_size tokens long and handed
  /// out in an order shuffled by `seed`, as they would be in a pool that many requests share.
  KvCache(const ModelConfig& config, std::int64_t capacity, std::int64_t max_chunk, int num_threads,
          std::uint64_t seed);

  /// Bytes of the pages of such a cache.
  static std::uint64_t bytes(const ModelConfig& config, std::int64_t capacity);

  /// Stores the chunk's keys, then attends to everything stored.
  void attend(std::size_t layer, Phase phase, const Sequences& sequences, AttentionActivations& activations) override;

 private:
  struct Pages {
    std::vector<float> k;        // [num_pages, page_size, num_heads_kv, head_dim]
    std::vector<float> v;        // as k
    std::vector<float> index_k;  // [num_pages, page_size, index_dim], empty in a full layer
  };

  ModelConfig config_;
  std::int64_t num_pages_;
  std::vector<std::int32_t> block_table_;
  std::vector<Pages> layers_;
  Plan plan_;
  Workspace workspace_;
};

}  // namespace openmsa::lm
