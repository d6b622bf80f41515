// Launches the kernels before and after the backward kernel.
#include "cuda/generic/training/elements.h"
#include "cuda/generic/training/finish.cuh"
#include "cuda/generic/training/kernels.h"
#include "cuda/generic/training/prepare.cuh"

namespace openmsa::cuda::generic::training {
namespace {

/// Rows of the batch times their query heads.
std::int64_t num_rows(const BackwardParams& p) {
  return (std::int64_t{p.work.rows} * p.work.heads) << p.log2_group_size;
}

}  // namespace

void launch_key_bounds(const generic::ListParams& lists, const KeyInputs& in, openmsa_dtype dtype, Launch launch) {
  const LaunchShape shape{
      {static_cast<unsigned int>(lists.max_lists), static_cast<unsigned int>(in.num_heads_kv)}, kPrepareThreads, 0};
  with_element(dtype, [&](auto element) {
    cuda::launch("key_bounds", key_bounds_kernel<decltype(element)>, shape, launch.stream, lists.batch,
                 lists.index.blocks, in);
  });
}

void launch_row_bounds(const BackwardParams& p, const SeenKeys& in, Launch launch) {
  const std::int64_t places = std::int64_t{p.work.rows} * p.work.heads;
  cuda::launch("row_bounds", row_bounds_kernel, {{ctas_for(places * 32, kPrepareThreads)}, kPrepareThreads, 0},
               launch.stream, p, in);
}

void launch_row_stats(const BackwardParams& p, const RowInputs& in, openmsa_dtype dtype, openmsa_dtype o_dtype,
                      Launch launch) {
  const std::int64_t rows = std::int64_t{p.work.rows} << p.log2_group_size;
  const LaunchShape shape{{ctas_for(rows * in.head_dim / kLaneChannels, kPrepareThreads * kStatsRows),
                           static_cast<unsigned int>(p.work.heads)},
                          kPrepareThreads,
                          0};
  with_element(dtype, [&](auto element) {
    using Element = decltype(element);
    const auto kernel =
        o_dtype == OPENMSA_FLOAT32 ? row_stats_kernel<Element, float> : row_stats_kernel<Element, Element>;
    cuda::launch("row_stats", kernel, shape, launch.stream, p, in);
  });
}

void launch_query_gradient(const BackwardParams& p, const GradientRows& d_q, float softmax_scale, openmsa_dtype dtype,
                           Launch launch) {
  const LaunchShape shape{{ctas_for(num_rows(p) * d_q.head_dim / kQueryChannels, kFinishThreads)}, kFinishThreads, 0};
  with_element(dtype, [&](auto element) {
    cuda::launch("query_gradient", query_gradient_kernel<decltype(element)>, shape, launch.stream, p, d_q,
                 softmax_scale);
  });
}

void launch_key_gradients(const KeyGradients& p, openmsa_dtype dtype, Launch launch) {
  const std::int64_t threads = std::int64_t{p.total_k} * 2 * p.d_k.head_dim / kLaneChannels;
  const LaunchShape shape{{ctas_for(threads, kFinishThreads), static_cast<unsigned int>(p.heads)}, kFinishThreads, 0};
  with_element(dtype, [&](auto element) {
    cuda::launch("key_gradients", key_gradients_kernel<decltype(element)>, shape, launch.stream, p);
  });
}

}  // namespace openmsa::cuda::generic::training
