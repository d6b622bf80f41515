// New tokens into the paged caches: copies, no arithmetic.
#include <cstring>

#include "ref/stages.h"

namespace openmsa::ref {
namespace {

/// Row `row`, head r of new keys to token j of the cache rows `cache`.
void copy_token(const openmsa_tensor& from, std::int64_t row, std::int64_t r, const core::KeyRows& cache,
                std::int64_t j) {
  const std::int64_t channels = from.shape[from.rank - 1];
  const std::byte* source = from.rank == 3 ? core::address(from, row, r) : core::address(from, row);
  std::memcpy(cache.token(j), source, static_cast<std::size_t>(channels) * openmsa_dtype_bytes(from.dtype));
}

}  // namespace

void run_append_kv(const core::Problem& problem) {
  const openmsa_tensors& tensors = problem.tensors;
  for (const core::Sequence& sequence : sequences(problem)) {
    for (std::int64_t t = 0; t < sequence.seqlen_q; ++t) {
      const std::int64_t j = sequence.position(t);
      if (j < 0) continue;
      const std::int64_t row = sequence.q_begin + t;
      for (std::int64_t r = 0; r < problem.plan.config.num_heads_kv; ++r) {
        copy_token(tensors.k, row, r, problem.k(sequence, r), j);
        copy_token(tensors.v, row, r, problem.v(sequence, r), j);
      }
      if (core::present(tensors.index_k)) copy_token(tensors.index_k, row, 0, problem.index_k(sequence), j);
    }
  }
}

}  // namespace openmsa::ref
