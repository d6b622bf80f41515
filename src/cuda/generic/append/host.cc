#include "cuda/common/call.h"
#include "cuda/generic/append/append.h"
#include "cuda/generic/append/kernels.h"

namespace openmsa::cuda::generic {
namespace {

using core::present;

AppendMode append_mode(const openmsa_tensor& cache, const openmsa_tensor& scale, bool has_block_scales) {
  if (cache.dtype != OPENMSA_FLOAT8_E4M3) return AppendMode::kCopy;
  if (!present(scale)) return AppendMode::kRound;
  if (core::is_one_scale(scale)) return AppendMode::kRoundByScale;
  return has_block_scales ? AppendMode::kScalePerBlock : AppendMode::kScalePerToken;
}

/// `from` is [total][heads][dim] and `cache` [num_pages][page_size][heads][dim], or both without heads.
AppendTensor append_tensor(const openmsa_tensor& from, const openmsa_tensor& cache, const openmsa_tensor& scale,
                           bool has_block_scales = false) {
  AppendTensor t{};
  if (!present(from)) return t;
  const bool has_heads = from.rank == 3;
  t.from = from.data;
  t.row_stride = from.strides[0];
  t.head_stride = has_heads ? from.strides[1] : 0;
  t.cache = cache.data;
  t.page_stride = cache.strides[0];
  t.token_stride = cache.strides[1];
  t.cache_head_stride = has_heads ? cache.strides[2] : 0;
  t.heads = static_cast<std::int32_t>(has_heads ? from.shape[1] : 1);
  t.dim = static_cast<std::int32_t>(from.shape[from.rank - 1]);
  t.mode = append_mode(cache, scale, has_block_scales);
  t.scale = static_cast<float*>(scale.data);
  if (t.mode == AppendMode::kScalePerToken || t.mode == AppendMode::kScalePerBlock) {
    t.scale_head_stride = has_heads ? scale.strides[0] : 0;
    t.scale_token_stride = scale.strides[scale.rank - 1];
  }
  return t;
}

}  // namespace

void append(const core::Problem& problem, Launch launch) {
  const core::Plan& plan = problem.plan;
  const openmsa_tensors& t = problem.tensors;
  const AppendParams p{batch_view(problem),
                       {append_tensor(t.k, t.k_cache, t.k_scale), append_tensor(t.v, t.v_cache, t.v_scale),
                        append_tensor(t.index_k, t.index_k_cache, t.index_k_scale, plan.has_block_scales())}};
  launch_append(p, plan.config.dtype, launch);
}

}  // namespace openmsa::cuda::generic
