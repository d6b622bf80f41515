// The layers on which backends are compared.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "support/layer.h"

namespace openmsa::test {

struct NamedShape {
  std::string name;
  LayerShape shape;
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

inline std::string backend_name(const testing::TestParamInfo<openmsa_backend>& info) {
  switch (info.param) {
    case OPENMSA_BACKEND_CPU:
      return "cpu";
    case OPENMSA_BACKEND_REFERENCE:
      return "reference";
    default:
      return "reference_float32";
  }
}

}  // namespace openmsa::test
