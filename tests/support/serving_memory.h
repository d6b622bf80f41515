// The memory in which a serving trace plays: caches, and the rows of each step's new tokens.
#pragma once

#include "support/run.h"
#include "support/serving_trace.h"

namespace openmsa::test {

class ServingMemory {
 public:
  /// Caches of `shape`'s dtype and heads with `limits.page_size`, poisoned; its lengths and pages do not matter.
  ServingMemory(LayerShape shape, const ServingLimits& limits, std::uint64_t seed);

  /// Poisons the pages that came back, fills those of new prompts, and makes layer() that of the step.
  void apply(const ServingStep& step);

  /// The latest step: its lengths, table and random rows. k, v and index_k are those of its new tokens, as
  /// openmsa_append_kv takes them; rows past the last one are padding.
  const Layer& layer() const { return layer_; }
  /// Apart from the layer: what a step appends and reads.
  TensorMap& caches() { return caches_; }
  const TensorMap& caches() const { return caches_; }

 private:
  std::byte* page(Buffer& cache, std::int64_t number) const;
  std::size_t page_bytes(const Buffer& cache) const;
  const std::byte* noise(std::size_t bytes);

  ServingLimits limits_;
  std::mt19937_64 random_;
  Buffer noise_;
  Layer layer_;
  TensorMap caches_;
};

}  // namespace openmsa::test
