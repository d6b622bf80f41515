// Operations by name, for messages.
#pragma once

#include <openmsa/openmsa.h>

#include <array>
#include <cstddef>

namespace openmsa::core {

inline constexpr std::array<const char*, OPENMSA_OP_COUNT> kOperationNames = {
    "openmsa_block_scores",
    "openmsa_topk",
    "openmsa_select_blocks",
    "openmsa_sparse_attention",
    "openmsa_msa_attention",
    "openmsa_dense_attention",
    "openmsa_sparse_attention_backward",
    "openmsa_dense_attention_backward",
    "openmsa_kl_loss",
    "openmsa_block_recall",
    "openmsa_append_kv",
};
static_assert(kOperationNames.back() != nullptr);

/// The function of openmsa.h that runs `op`.
constexpr const char* operation_name(openmsa_op op) {
  const auto number = static_cast<std::size_t>(op);
  return number < kOperationNames.size() ? kOperationNames[number] : "unknown operation";
}

}  // namespace openmsa::core
