// Layers small enough to work out by hand: 16 channels, so that 1/sqrt(index_dim) = 1/4, of which only channel 0 is
// used.
#pragma once

#include "support/run.h"

namespace openmsa::test {

/// One sequence in float64 on the reference backend, blocks of 8, softmax_scale 1, every input zero.
inline Layer hand_layer(std::int32_t num_heads_q, std::int64_t seqlen_q, std::int64_t seqlen_k) {
  Layer layer = make_layer({.dtype = OPENMSA_FLOAT64,
                            .num_heads_q = num_heads_q,
                            .num_heads_kv = 1,
                            .head_dim = 16,
                            .index_dim = 16,
                            .block_size = 8,
                            .topk = 2,
                            .seqlens_q = {seqlen_q},
                            .seqlens_k = {seqlen_k}})
                    .on(OPENMSA_BACKEND_REFERENCE);
  layer.config.softmax_scale = 1;
  for (const char* name : {"q", "k", "v", "index_q", "index_k"}) layer.tensors.at(name).fill(0);
  return layer;
}

/// Sets channel 0 of row `i`, head `h` (rank 3) or of row `i` (rank 2).
inline void set_channel0(Layer& layer, const char* name, std::int64_t i, std::int64_t h, double value) {
  Buffer& tensor = layer.tensors.at(name);
  if (tensor.shape().size() == 3) {
    tensor.set({i, h, 0}, value);
  } else {
    tensor.set({i, 0}, value);
  }
}

/// For finite differences: two sequences, the second a chunk at the end of its keys; a query row of no sequence.
inline Layer small_layer() {
  return make_layer({.dtype = OPENMSA_FLOAT64,
                     .num_heads_q = 4,
                     .num_heads_kv = 2,
                     .head_dim = 8,
                     .index_dim = 8,
                     .block_size = 8,
                     .topk = 2,
                     .seqlens_q = {9, 3},
                     .seqlens_k = {9, 27},
                     .padding_q = 1})
      .on(OPENMSA_BACKEND_REFERENCE);
}

}  // namespace openmsa::test
