// The layers on which backends are compared.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "support/run.h"

namespace openmsa::test {

/// A shape that a backend serves.
struct BackendShape {
  openmsa_backend backend;
  NamedShape named;
};

/// A layer but for its dtype and lengths, for tables of layers.
struct ShapeRow {
  std::int32_t num_heads_kv, group_size, head_dim, index_dim, block_size, topk, num_init_blocks, num_local_blocks,
      page_size;

  LayerShape of(openmsa_dtype dtype) const;
};

/// Named after all but the lengths, behind `prefix`.
NamedShape named(const std::string& prefix, LayerShape shape);

/// Every dtype with every head_dim, index_dim, block_size, group size and page size that must work, on a ragged batch:
/// a whole prompt, decode, a request without queries, speculation, a request without keys, a chunk behind a prefix, and
/// rows of no request; then decode over many kv_blocks.
std::vector<NamedShape> all_shapes();

/// The same with fp8 index keys, and fp8 caches where there are pages, under every kind of scale.
std::vector<NamedShape> fp8_shapes();

/// Those of all_shapes() with contiguous keys.
std::vector<NamedShape> contiguous_shapes();

inline std::string shape_name(const testing::TestParamInfo<NamedShape>& info) { return info.param.name; }

/// The shapes on which the two branches of this program's backends are judged.
std::vector<BackendShape> attention_shapes();
std::vector<BackendShape> selection_shapes();

/// Those on which gradients are judged: contiguous keys.
std::vector<BackendShape> gradient_shapes();

/// A test on one of them.
class OnBackendShape : public OnAnyBackend, public testing::WithParamInterface<BackendShape> {
 protected:
  Layer layer_ = make_layer(GetParam().named.shape).on(GetParam().backend);
};

inline std::string backend_shape_name(const testing::TestParamInfo<BackendShape>& info) {
  return info.param.named.name;
}

}  // namespace openmsa::test
