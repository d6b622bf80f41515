// Index branch: token scores and their maximum over each kv_block.
#include <algorithm>
#include <cmath>

#include "core/row_scale.h"
#include "ref/softmax.h"
#include "ref/stages.h"

namespace openmsa::ref {
namespace {

/// index_q[t,r] = e4m3(index_q * (448 / amax)) * (amax / 448), amax = max |index_q[t,r,:]|; rounded as fp32.
template <class C>
void round_with_scales(Array<C>& index_q) {
  for (std::int64_t t = 0; t < index_q.size(0); ++t) {
    for (std::int64_t r = 0; r < index_q.size(1); ++r) {
      float amax = 0;
      for (std::int64_t c = 0; c < index_q.size(2); ++c) {
        amax = std::fmax(amax, std::abs(static_cast<float>(index_q(t, r, c))));  // fmax ignores NaN
      }
      const core::RowScale scale = core::row_scale(amax);
      for (std::int64_t c = 0; c < index_q.size(2); ++c) {
        const auto rounded = core::to_float8_e4m3(static_cast<float>(index_q(t, r, c)) * scale.to_fp8);
        index_q(t, r, c) = C(core::to_float(rounded)) * C(scale.from_fp8);
      }
    }
  }
}

/// index_q[t,r] = e4m3(index_q), rounded as fp32.
template <class C>
void cast(Array<C>& index_q) {
  for (std::int64_t t = 0; t < index_q.size(0); ++t) {
    for (std::int64_t r = 0; r < index_q.size(1); ++r) {
      for (std::int64_t c = 0; c < index_q.size(2); ++c) {
        index_q(t, r, c) = C(core::to_float(core::to_float8_e4m3(static_cast<float>(index_q(t, r, c)))));
      }
    }
  }
}

/// As it meets keys in e4m3; see openmsa_index_q_rounding.
template <class C>
void round_to_fp8(Array<C>& index_q, openmsa_index_q_rounding rounding) {
  if (rounding == OPENMSA_INDEX_Q_SCALED) round_with_scales(index_q);
  if (rounding == OPENMSA_INDEX_Q_CAST) cast(index_q);
}

}  // namespace

template <class C>
Array<C> block_scores(const core::Problem& problem, const core::Sequence& sequence) {
  const openmsa_config& config = problem.plan.config;
  auto index_q = load_rows<C>(problem.tensors.index_q, sequence.q_begin, sequence.seqlen_q);
  if (problem.plan.has_fp8_index()) round_to_fp8(index_q, config.index_q_rounding);
  const auto index_k = load_index_k<C>(problem, sequence);
  const std::int64_t num_blocks = core::ceil_div(sequence.seqlen_k, config.block_size);
  Array<C> m(config.num_heads_kv, sequence.seqlen_q, num_blocks, -kInfinity<C>);
  for (std::int64_t r = 0; r < config.num_heads_kv; ++r) {
    for (std::int64_t t = 0; t < sequence.seqlen_q; ++t) {
      const std::int64_t position = sequence.position(t);
      for (std::int64_t b = 0; b < visible_blocks(position, config.block_size); ++b) {
        if (!problem.plan.holds(b)) continue;
        C maximum = std::numeric_limits<C>::quiet_NaN();
        const std::int64_t end = std::min((b + 1) * config.block_size, position + 1);
        for (std::int64_t j = b * config.block_size; j < end; ++j) {
          const C score = dot(index_q.row(t, r), index_k.row(j, 0), config.index_dim) / std::sqrt(C(config.index_dim));
          if (std::isnan(maximum) || score > maximum) maximum = score;  // a NaN score loses to every number
        }
        m(r, t, b) = maximum;
      }
    }
  }
  return m;
}

template <class C>
void run_block_scores(const core::Problem& problem) {
  const openmsa_tensor& out = problem.tensors.block_scores;
  for (const core::Sequence& sequence : sequences(problem)) {
    const auto m = block_scores<C>(problem, sequence);
    for (std::int64_t r = 0; r < out.shape[0]; ++r) {
      for (std::int64_t t = 0; t < sequence.seqlen_q; ++t) {
        for (std::int64_t b = 0; b < out.shape[2]; ++b) {
          core::store(out, b < m.size(2) ? m(r, t, b) : -kInfinity<C>, r, sequence.q_begin + t, b);
        }
      }
    }
  }
}

template Array<double> block_scores(const core::Problem&, const core::Sequence&);
template Array<float> block_scores(const core::Problem&, const core::Sequence&);
template void run_block_scores<double>(const core::Problem&);
template void run_block_scores<float>(const core::Problem&);

}  // namespace openmsa::ref
