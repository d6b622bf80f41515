// Layers of the size of several items and tiles of the training kernels, and what repeated, concurrent and captured calls
// over them have to give: the same bits.
#pragma once

#include <array>

#include "cuda/support/device_call.h"
#include "cuda/support/hopper.h"
#include "support/compare.h"
#include "support/gradients.h"
#include "support/selections.h"

namespace openmsa::test {

inline openmsa_op forward_of(bool is_dense) {
  return is_dense ? OPENMSA_OP_DENSE_ATTENTION : OPENMSA_OP_SPARSE_ATTENTION;
}

inline LayerShape busy_shape(std::int32_t group_size = 16) {
  return {.dtype = OPENMSA_BFLOAT16,
          .num_heads_q = 2 * group_size,
          .num_heads_kv = 2,
          .head_dim = 128,
          .index_dim = 128,
          .block_size = 128,
          .topk = 8,
          .seqlens_q = {1800, 1, 5, 300},
          .seqlens_k = {2600, 900, 1300, 300},
          .padding_q = 7};
}

/// Of the same size, its sequences in another order.
inline LayerShape busy_shape_reordered() {
  LayerShape shape = busy_shape();
  shape.seqlens_q = {300, 5, 1, 1800};
  shape.seqlens_k = {300, 1300, 900, 2600};
  return shape;
}

/// Ready for a gradient over the whole history, or over a selection with a kv_block that every second query wants.
inline Layer hot_layer(const LayerShape& shape, bool is_dense, std::uint64_t seed = 1) {
  Layer layer = device_layer(shape, seed);
  if (!is_dense) {
    Buffer indices = random_selection(layer, seed);
    for (std::int64_t row = 0; row < layer.total_q(); row += 2) {
      for (std::int64_t slot = 0; slot < 8; ++slot) indices.set({1, row, slot}, slot == 0 ? 0 : -1);
    }
    layer.add({{"topk_indices", indices}});
  }
  return with_forward(layer, forward_of(is_dense), OPENMSA_BACKEND_CPU);
}

inline void expect_equal_runs(const Layer& layer, openmsa_op op) {
  DeviceCall call(layer, op);
  call.enqueue();
  const TensorMap first = call.results();
  for (int repeat = 0; repeat < 20; ++repeat) {
    call.poison();
    call.enqueue();
    expect_same_bits(call.results(), first);
  }
}

/// Calls on two streams, in turns.
inline void expect_undisturbed(const std::array<Layer, 2>& layers, openmsa_op op) {
  DeviceCall calls[] = {{layers[0], op}, {layers[1], op}};
  const Stream streams[2];
  TensorMap alone[2];
  for (int i = 0; i < 2; ++i) {
    calls[i].enqueue(streams[i].get());
    alone[i] = calls[i].results();
  }
  for (int repeat = 0; repeat < 5; ++repeat) {
    for (DeviceCall& call : calls) call.poison();
    for (int i : {0, 1, 0, 1}) calls[i].enqueue(streams[i].get());
    for (int i = 0; i < 2; ++i) expect_same_bits(calls[i].results(), alone[i]);
  }
}

/// A graph captured over one layer, replayed over both.
inline void expect_replays(const Layer& first, const Layer& second, openmsa_op op) {
  DeviceCall call(first, op);
  const Graph graph([&](cudaStream_t stream) { call.enqueue(stream); });
  const Stream stream;
  for (const Layer* layer : {&first, &second, &first}) {
    call.update(*layer);
    call.poison();
    graph.replay(stream);
    expect_same_bits(call.results(), run(*layer, op));
  }
}

}  // namespace openmsa::test
