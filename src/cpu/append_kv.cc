// New tokens into paged caches: a copy of rows, token by token.

#include <cstring>

#include "cpu/stages.h"
#include "cpu/work.h"

namespace openmsa::cpu {
namespace {

using core::Problem;
using core::Sequence;

/// Row t of a sequence in `from`, [total][heads][dim] or [total][dim], to token `position` of the cache.
void copy_token(const Problem& problem, const Sequence& sequence, std::int64_t t, const openmsa_tensor& from,
                const openmsa_tensor& cache, std::int64_t position) {
  const std::int64_t page_size = problem.plan.config.page_size, page = sequence.page(position / page_size);
  const std::int64_t heads = from.rank == 3 ? from.shape[1] : 1, dim = from.shape[from.rank - 1];
  const std::size_t bytes = static_cast<std::size_t>(dim) * openmsa_dtype_bytes(from.dtype);
  for (std::int64_t h = 0; h < heads; ++h) {
    const bool has_heads = from.rank == 3;
    const std::byte* source = core::address(from, sequence.q_begin + t, has_heads ? h : 0);
    std::memcpy(core::address(cache, page, position % page_size, has_heads ? h : 0), source, bytes);
  }
}

}  // namespace

void append_kv(const Problem& problem, core::Arena&, const Threads& threads) {
  const openmsa_tensors& tensors = problem.tensors;
  for_each_item(
      problem, threads, [](const Sequence& sequence) { return sequence.seqlen_k == 0 ? 0 : sequence.seqlen_q; },
      [&](const Item& item, int) {
        const std::int64_t position = item.sequence.position(item.index);
        copy_token(problem, item.sequence, item.index, tensors.k, tensors.k_cache, position);
        copy_token(problem, item.sequence, item.index, tensors.v, tensors.v_cache, position);
        if (core::present(tensors.index_k)) {
          copy_token(problem, item.sequence, item.index, tensors.index_k, tensors.index_k_cache, position);
        }
      });
}

}  // namespace openmsa::cpu
