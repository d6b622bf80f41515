#include "cuda/support/cases.h"

#include <algorithm>

namespace openmsa::test {

std::vector<NamedShape> hopper_shapes() {
  const LayerShape shapes[] = {
      {.num_heads_q = 2, .num_heads_kv = 2, .head_dim = 64, .index_dim = 64, .block_size = 64, .topk = 4},
      {.num_heads_q = 6, .num_heads_kv = 3, .head_dim = 64, .index_dim = 128, .block_size = 64, .topk = 1},
      {.num_heads_q = 8, .head_dim = 128, .index_dim = 64, .block_size = 64, .topk = 3, .num_init_blocks = 1},
      {.num_heads_q = 16, .num_heads_kv = 1, .head_dim = 128, .index_dim = 128, .block_size = 128, .topk = 2},
      {.num_heads_q = 64, .num_heads_kv = 4, .head_dim = 128, .index_dim = 128, .block_size = 128, .topk = 16},
      {.num_heads_q = 8, .num_heads_kv = 1, .head_dim = 64, .index_dim = 64, .block_size = 64, .topk = 64},
      {.num_heads_q = 16,
       .num_heads_kv = 8,
       .head_dim = 64,
       .index_dim = 64,
       .block_size = 64,
       .topk = 2,
       .num_init_blocks = 2,
       .num_local_blocks = 2},
      {.num_heads_q = 8, .head_dim = 128, .index_dim = 64, .block_size = 128, .topk = 3, .page_size = 16},
      {.num_heads_q = 16,
       .num_heads_kv = 1,
       .head_dim = 64,
       .index_dim = 64,
       .block_size = 64,
       .topk = 4,
       .num_init_blocks = 1,
       .page_size = 64},
      {.num_heads_q = 4, .head_dim = 128, .index_dim = 128, .block_size = 128, .topk = 3, .page_size = 32},
      {.num_heads_q = 2, .head_dim = 64, .index_dim = 128, .block_size = 64, .num_local_blocks = 0, .page_size = 16},
      {.num_heads_q = 8,
       .num_heads_kv = 1,
       .head_dim = 128,
       .index_dim = 64,
       .block_size = 128,
       .topk = 17,
       .num_local_blocks = 2,
       .page_size = 128},
      {.num_heads_q = 5,
       .num_heads_kv = 5,
       .head_dim = 128,
       .index_dim = 128,
       .block_size = 64,
       .topk = 33,
       .num_init_blocks = 2,
       .num_local_blocks = 3,
       .page_size = 32},
  };
  std::vector<NamedShape> result;
  for (const openmsa_dtype dtype : {OPENMSA_BFLOAT16, OPENMSA_FLOAT16}) {
    for (LayerShape shape : shapes) {
      shape.dtype = dtype;
      shape.seqlens_q = {70, 1, 0, 4, 2, 33, 150};
      shape.seqlens_k = {70, 900, 20, 333, 0, 297, 150};
      shape.padding_q = 3;
      result.push_back(named("", shape));
    }
  }
  return result;
}

std::vector<NamedShape> fp8_index_shapes() {
  std::vector<NamedShape> result;
  for (const NamedShape& plain : hopper_shapes()) {
    for (const Scales scales : {Scales::kNone, Scales::kOne, Scales::kPerToken}) {
      LayerShape shape = plain.shape;
      shape.index_dtype = OPENMSA_FLOAT8_E4M3;
      shape.scales = scales;
      result.push_back(named("", shape));
    }
  }
  return result;
}

std::vector<NamedShape> fp8_kv_shapes() {
  std::vector<NamedShape> result;
  for (const NamedShape& plain : hopper_shapes()) {
    for (const Scales scales : {Scales::kNone, Scales::kOne, Scales::kPerToken}) {
      LayerShape shape = plain.shape;
      if (shape.page_size == 0) shape.page_size = shape.block_size;
      shape.kv_dtype = OPENMSA_FLOAT8_E4M3;
      shape.scales = scales;
      result.push_back(named("", shape));
    }
  }
  return result;
}

LayerShape many_blocks(openmsa_dtype dtype, std::int32_t group_size, std::int32_t head_dim) {
  return {.dtype = dtype,
          .num_heads_q = 2 * group_size,
          .head_dim = head_dim,
          .block_size = 64,
          .topk = 8,
          .seqlens_q = {500, 1, 700},
          .seqlens_k = {4000, 900, 700}};
}

}  // namespace openmsa::test
