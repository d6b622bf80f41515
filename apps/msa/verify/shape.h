// The layers that msa verify runs.
#pragma once

#include <string>

#include "judge/layer.h"

namespace openmsa::cli {

/// Dtypes of a call's tensors, as the columns of the table are named.
struct Format {
  const char* name;
  openmsa_dtype dtype;
  bool has_fp8_keys;  // k, v and index keys in e4m3 with a scale per token; for paged shapes
};
inline constexpr Format kFormats[] = {{"fp32", OPENMSA_FLOAT32, false},
                                      {"bf16", OPENMSA_BFLOAT16, false},
                                      {"fp16", OPENMSA_FLOAT16, false},
                                      {"fp8 keys", OPENMSA_BFLOAT16, true}};

/// What a plan is about; its sequences are either prompts and chunks behind a prefix, or decode and speculation.
struct VerifyShape {
  std::int32_t num_heads_kv, group_size, head_dim, index_dim, block_size, topk, num_init_blocks, num_local_blocks,
      page_size;
  bool is_decode;

  judge::LayerShape in(const Format& format) const;
};

/// "2 KV heads of 64, 4 query heads each, ..."
std::string describe(const VerifyShape& shape);

/// Operations that a plan of this kind has, in an order in which each reads what earlier ones gave.
std::vector<openmsa_op> operations(const VerifyShape& shape);

}  // namespace openmsa::cli
