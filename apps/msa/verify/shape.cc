#include "msa/verify/shape.h"

namespace openmsa::cli {

judge::LayerShape VerifyShape::in(const Format& format) const {
  using Lengths = std::vector<std::int64_t>;
  judge::LayerShape shape{.dtype = format.dtype,
                          .num_heads_q = num_heads_kv * group_size,
                          .num_heads_kv = num_heads_kv,
                          .head_dim = head_dim,
                          .index_dim = index_dim,
                          .block_size = block_size,
                          .topk = topk,
                          .num_init_blocks = num_init_blocks,
                          .num_local_blocks = num_local_blocks,
                          .page_size = page_size};
  // Also a sequence without queries and one without keys; chunks behind a prefix; ends that are no ends of a kv_block.
  shape.seqlens_q = is_decode ? Lengths{1, 3, 0, 16, 1} : Lengths{70, 1, 0, 4, 2, 33};
  shape.seqlens_k = is_decode ? Lengths{2500, 65, 30, 333, 0} : Lengths{70, 259, 20, 133, 0, 97};
  if (format.has_fp8_keys) {
    shape.kv_dtype = shape.index_dtype = OPENMSA_FLOAT8_E4M3;
    shape.scales = judge::Scales::kPerToken;
  }
  return shape;
}

std::string describe(const VerifyShape& shape) {
  const auto text = [](std::int32_t value) { return std::to_string(value); };
  return text(shape.num_heads_kv) + " KV heads of " + text(shape.head_dim) + ", " + text(shape.group_size) +
         " query heads each, index_dim " + text(shape.index_dim) + ", block_size " + text(shape.block_size) +
         ", topk " + text(shape.topk) + ", " + text(shape.num_init_blocks) + " initial and " +
         text(shape.num_local_blocks) + " local blocks, page_size " + text(shape.page_size) +
         (shape.is_decode ? ", decode" : ", prompts");
}

std::vector<openmsa_op> operations(const VerifyShape& shape) {
  if (shape.page_size > 0) {
    return {OPENMSA_OP_APPEND_KV,        OPENMSA_OP_BLOCK_SCORES,  OPENMSA_OP_TOPK,           OPENMSA_OP_SELECT_BLOCKS,
            OPENMSA_OP_SPARSE_ATTENTION, OPENMSA_OP_MSA_ATTENTION, OPENMSA_OP_DENSE_ATTENTION};
  }
  return {OPENMSA_OP_BLOCK_SCORES,
          OPENMSA_OP_TOPK,
          OPENMSA_OP_SELECT_BLOCKS,
          OPENMSA_OP_BLOCK_RECALL,
          OPENMSA_OP_SPARSE_ATTENTION,
          OPENMSA_OP_SPARSE_ATTENTION_BACKWARD,
          OPENMSA_OP_KL_LOSS,
          OPENMSA_OP_MSA_ATTENTION_BACKWARD,
          OPENMSA_OP_MSA_ATTENTION,
          OPENMSA_OP_DENSE_ATTENTION,
          OPENMSA_OP_DENSE_ATTENTION_BACKWARD};
}

}  // namespace openmsa::cli
