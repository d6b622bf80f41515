// Attention from its parts over different keys.
#include <cmath>
#include <vector>

#include "ref/softmax.h"
#include "ref/stages.h"

namespace openmsa::ref {

template <class C>
void run_merge_partials(const core::Problem& problem) {
  const openmsa_tensors& tensors = problem.tensors;
  const std::int64_t shards = tensors.partial_o.shape[0], heads = tensors.o.shape[1], channels = tensors.o.shape[2];
  Array<C> o(problem.total_q, heads, channels);
  Array<C> lse(problem.total_q, heads, 1, -kInfinity<C>);
  for (std::int64_t i = 0; i < problem.used_q(); ++i) {
    for (std::int64_t h = 0; h < heads; ++h) {
      std::vector<C> parts;
      for (std::int64_t s = 0; s < shards; ++s)
        parts.push_back(static_cast<C>(core::load(tensors.partial_lse, s, i, h)));
      lse(i, h) = log_sum_exp(parts);
      for (std::int64_t s = 0; s < shards; ++s) {
        const C part = parts[static_cast<std::size_t>(s)];
        if (part == -kInfinity<C>) continue;  // nothing, whatever its o
        for (std::int64_t c = 0; c < channels; ++c) {
          o(i, h, c) += std::exp(part - lse(i, h)) * static_cast<C>(core::load(tensors.partial_o, s, i, h, c));
        }
      }
    }
  }
  store_rows(tensors.o, 0, o);
  if (core::present(tensors.lse)) store_rows(tensors.lse, 0, lse);
}

template void run_merge_partials<double>(const core::Problem&);
template void run_merge_partials<float>(const core::Problem&);

}  // namespace openmsa::ref
