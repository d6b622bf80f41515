// New tokens into the paged caches: copies, or rounded to e4m3.
#include <cmath>
#include <cstring>

#include "core/row_scale.h"
#include "ref/stages.h"

namespace openmsa::ref {
namespace {

/// New keys of one kind and where they go.
struct Append {
  const openmsa_tensor& from;  // [total, heads, channels] or [total, channels]
  const openmsa_tensor& scale;
  std::int64_t row;
  std::int64_t head;

  std::int64_t channels() const { return from.shape[from.rank - 1]; }
  float value(std::int64_t c) const {
    return static_cast<float>(from.rank == 3 ? core::load(from, row, head, c) : core::load(from, row, c));
  }
  float amax() const {
    float result = 0;
    for (std::int64_t c = 0; c < channels(); ++c) result = std::fmax(result, std::abs(value(c)));  // ignores NaN
    return result;
  }
};

/// Bit by bit into a cache of the same dtype.
void copy_token(const Append& append, std::byte* to) {
  const openmsa_tensor& from = append.from;
  const std::byte* source =
      from.rank == 3 ? core::address(from, append.row, append.head) : core::address(from, append.row);
  std::memcpy(to, source, static_cast<std::size_t>(append.channels()) * openmsa_dtype_bytes(from.dtype));
}

void divide_token(const Append& append, float scale, core::Float8E4M3* to) {
  for (std::int64_t c = 0; c < append.channels(); ++c) to[c] = core::to_float8_e4m3(append.value(c) / scale);
}

/// e4m3(x), e4m3(x / scale), or e4m3(x * (448 / amax)) with amax / 448 written as the token's scale.
void round_token(const Append& append, const core::KeyRows& cache, std::int64_t j) {
  auto* to = reinterpret_cast<core::Float8E4M3*>(cache.token(j));
  if (!core::present(append.scale)) {
    for (std::int64_t c = 0; c < append.channels(); ++c) to[c] = core::to_float8_e4m3(append.value(c));
  } else if (core::is_one_scale(append.scale)) {
    divide_token(append, cache.scale(j), to);
  } else {
    const core::RowScale scale = core::row_scale(append.amax());
    for (std::int64_t c = 0; c < append.channels(); ++c) to[c] = core::to_float8_e4m3(append.value(c) * scale.to_fp8);
    cache.scale(j) = scale.from_fp8;
  }
}

void append_token(const Append& append, const core::KeyRows& cache, std::int64_t j) {
  if (cache.dtype == OPENMSA_FLOAT8_E4M3) return round_token(append, cache, j);
  copy_token(append, cache.token(j));
}

/// A new index key. Where a kv_block has a scale, that follows from the first token, which is new too or wrote it.
void append_index_token(const core::Problem& problem, const core::Sequence& sequence, std::int64_t t) {
  const core::KeyRows cache = problem.index_k(sequence);
  const std::int64_t j = sequence.position(t), first = j - j % problem.plan.config.block_size;
  const auto new_token = [&](std::int64_t at) {
    return Append{problem.tensors.index_k, problem.tensors.index_k_scale, sequence.q_begin + at, 0};
  };
  if (!cache.has_block_scales()) return append_token(new_token(t), cache, j);
  const std::int64_t first_t = t - (j - first);
  if (first_t >= 0) cache.scale(j) = core::block_scale(new_token(first_t).amax());
  divide_token(new_token(t), cache.scale(j), reinterpret_cast<core::Float8E4M3*>(cache.token(j)));
}

}  // namespace

void run_append_kv(const core::Problem& problem) {
  const openmsa_tensors& tensors = problem.tensors;
  for (const core::Sequence& sequence : sequences(problem)) {
    for (std::int64_t t = 0; t < sequence.seqlen_q; ++t) {
      const std::int64_t j = sequence.position(t);
      if (j < 0 || !problem.plan.holds(j / problem.plan.config.block_size)) continue;
      const std::int64_t row = sequence.q_begin + t;
      for (std::int64_t r = 0; core::present(tensors.k) && r < problem.plan.config.num_heads_kv; ++r) {
        append_token({tensors.k, tensors.k_scale, row, r}, problem.k(sequence, r), j);
        append_token({tensors.v, tensors.v_scale, row, r}, problem.v(sequence, r), j);
      }
      if (core::present(tensors.index_k)) append_index_token(problem, sequence, t);
    }
  }
}

}  // namespace openmsa::ref
