// The whole layer's selection: the caller's topk_indices, or workspace where the caller does not ask for them.
#pragma once

#include <cstdint>

#include "core/arena.h"
#include "core/problem.h"

namespace openmsa::core {

inline std::int32_t* take_selection(const Plan& plan, Arena& arena) {
  return arena.take<std::int32_t>(plan.config.num_heads_kv * plan.config.max_total_q * plan.config.topk);
}

/// The tensors of msa_attention with topk_indices present.
inline openmsa_tensors with_selection(const Problem& problem, Arena& arena) {
  openmsa_tensors tensors = problem.tensors;
  std::int32_t* indices = take_selection(problem.plan, arena);
  if (!present(tensors.topk_indices)) {
    const std::int64_t shape[] = {problem.plan.config.num_heads_kv, problem.total_q, problem.plan.config.topk};
    tensors.topk_indices = openmsa_contiguous(indices, OPENMSA_INT32, 3, shape);
  }
  return tensors;
}

}  // namespace openmsa::core
