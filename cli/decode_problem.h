// A decode step on random paged caches: one query per sequence, each behind `context` keys.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <openmsa/openmsa.hpp>
#include <vector>

#include "layer_input.h"

namespace openmsa::cli {

/// Owns caches for `config.max_seqlen_k` keys of each of `config.max_batch` sequences, or more, in pages of random
/// order. A call uses some of the pages; rotate() gives the next one others, so that it finds its keys in memory and
/// not in the processor's caches, as every layer of a model does.
class DecodeProblem {
 public:
  DecodeProblem(const Config& config, std::uint64_t seed);

  void set_context(std::int64_t context);
  void rotate();
  std::int64_t context() const { return seqlens_k_.front(); }

  /// Inputs and results that `op` uses, of the current context: every call writes the same o and topk_indices.
  Tensors tensors(openmsa_op op) const;

  const Config& config() const { return config_; }
  std::int64_t num_blocks() const { return (context() + config_.block_size - 1) / config_.block_size; }

 private:
  openmsa_tensor allocate(openmsa_dtype dtype, std::initializer_list<std::int64_t> shape);
  openmsa_tensor random(std::initializer_list<std::int64_t> shape);

  Config config_;
  std::uint64_t seed_;
  std::vector<Workspace> memory_;
  std::vector<std::int32_t> cu_seqlens_q_;
  std::vector<std::int32_t> seqlens_k_;
  std::vector<std::int32_t> block_table_;  // [max_batch, pages_per_sequence_]
  std::vector<std::int32_t> pages_;        // all, in random order
  std::int64_t pages_per_sequence_;
  std::size_t next_page_ = 0;
  Tensors data_ = openmsa::tensors();
};

}  // namespace openmsa::cli
