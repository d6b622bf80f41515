// New tokens into paged caches, token by token: a copy of rows, or rounded to e4m3.

#include <cstring>

#include "core/row_scale.h"
#include "cpu/columns.h"
#include "cpu/stages.h"
#include "cpu/work.h"

namespace openmsa::cpu {
namespace {

using core::KeyRows;

constexpr std::int64_t kMaxDim = 256;

void divide_and_round(float* row, std::int64_t dim, float scale, std::byte* to) {
  for (std::int64_t c = 0; c < dim; ++c) row[c] /= scale;
  tile_ops().narrow(OPENMSA_FLOAT8_E4M3, row, to, dim);
}

/// One row to token j of an fp8 cache. A scale of all keys divides; those of tokens are written.
void round_token(openmsa_dtype dtype, const std::byte* source, std::int64_t dim, const openmsa_tensor& scale,
                 const KeyRows& cache, std::int64_t j) {
  float row[kMaxDim];
  const TileOps& ops = tile_ops();
  ops.widen(dtype, source, row, dim, 1);
  if (core::present(scale) && !core::is_one_scale(scale)) {
    cache.scale(j) = round_row(row, dim, reinterpret_cast<core::Float8E4M3*>(cache.token(j)));
    return;
  }
  if (core::present(scale)) return divide_and_round(row, dim, cache.scale(j), cache.token(j));
  ops.narrow(OPENMSA_FLOAT8_E4M3, row, cache.token(j), dim);
}

/// Row `row` of one head of `from`, [total][heads][dim] or [total][dim], to token j of the cache.
void append_token(const openmsa_tensor& from, std::int64_t row, std::int64_t head, const openmsa_tensor& scale,
                  const KeyRows& cache, std::int64_t j) {
  const std::int64_t dim = from.shape[from.rank - 1];
  const std::byte* source = from.rank == 3 ? core::address(from, row, head) : core::address(from, row);
  if (cache.dtype == OPENMSA_FLOAT8_E4M3) return round_token(from.dtype, source, dim, scale, cache, j);
  std::memcpy(cache.token(j), source, static_cast<std::size_t>(dim) * openmsa_dtype_bytes(from.dtype));
}

/// New token t of a sequence to an fp8 cache of index keys whose kv_blocks have a scale each. That follows from the
/// first token of the kv_block, which is new as well, or has written it in an earlier call.
void append_to_block(const Problem& problem, const Sequence& sequence, std::int64_t t, const KeyRows& cache) {
  const openmsa_tensor& from = problem.tensors.index_k;
  const std::int64_t dim = from.shape[1], j = sequence.position(t), entry = j % problem.plan.config.block_size;
  float row[kMaxDim];
  const auto widen = [&](std::int64_t at) {
    tile_ops().widen(from.dtype, core::address(from, sequence.q_begin + at), row, dim, 1);
  };
  float scale;
  if (entry <= t) {
    widen(t - entry);
    scale = core::block_scale(largest(row, dim));
  } else {
    scale = cache.scale(j);
  }
  if (entry == 0) cache.scale(j) = scale;
  widen(t);
  divide_and_round(row, dim, scale, cache.token(j));
}

void append_index_token(const Problem& problem, const Sequence& sequence, std::int64_t t) {
  const openmsa_tensors& tensors = problem.tensors;
  const KeyRows cache = problem.index_k(sequence);
  if (cache.has_block_scales()) return append_to_block(problem, sequence, t, cache);
  append_token(tensors.index_k, sequence.q_begin + t, 0, tensors.index_k_scale, cache, sequence.position(t));
}

}  // namespace

void append_kv(const Problem& problem, Arena&, const Loops& loops) {
  const openmsa_tensors& tensors = problem.tensors;
  for_each_item(
      problem, loops, [](const Sequence& sequence) { return sequence.seqlen_k == 0 ? 0 : sequence.seqlen_q; },
      [&](const Item& item, int) {
        const Plan& plan = problem.plan;
        const std::int64_t row = item.sequence.q_begin + item.index, j = item.sequence.position(item.index);
        if (!plan.holds(j / plan.config.block_size)) return;
        for (std::int64_t head = 0; core::present(tensors.k) && head < plan.config.num_heads_kv; ++head) {
          append_token(tensors.k, row, head, tensors.k_scale, problem.k(item.sequence, head), j);
          append_token(tensors.v, row, head, tensors.v_scale, problem.v(item.sequence, head), j);
        }
        if (core::present(tensors.index_k)) append_index_token(problem, item.sequence, item.index);
      });
}

}  // namespace openmsa::cpu
