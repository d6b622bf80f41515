// Launches the kernels before and after the steps of the KL loss.
#include "cuda/generic/training/elements.h"
#include "cuda/generic/training/kl/finish.cuh"
#include "cuda/generic/training/kl/kernels.h"
#include "cuda/generic/training/kl/prepare.cuh"

namespace openmsa::cuda::generic::training::kl {
namespace {

std::int64_t num_places(const Params& p) { return std::int64_t{p.work.rows} * p.work.heads; }

}  // namespace

void launch_maxima(const Params& p, const QueryRows& index_k, std::int64_t max_blocks, openmsa_dtype dtype,
                   Launch launch) {
  cuda::launch("max_weight", max_weight_kernel, {{static_cast<unsigned int>(launch.num_sms)}, kPrepareThreads, 0},
               launch.stream, p);
  with_element(dtype, [&](auto element) {
    cuda::launch("max_index_keys", max_index_keys_kernel<decltype(element)>,
                 {{static_cast<unsigned int>(max_blocks)}, kPrepareThreads, 0}, launch.stream, p, index_k);
  });
}

void launch_row_stats(const Params& p, Launch launch) {
  cuda::launch("row_stats", row_stats_kernel, {{ctas_for(num_places(p) * 32, kPrepareThreads)}, kPrepareThreads, 0},
               launch.stream, p);
}

void launch_sum_loss(const Params& p, Launch launch) {
  cuda::launch("sum_loss", sum_loss_kernel, {{1}, kLossThreads, 0}, launch.stream, p);
}

void launch_index_rows(const Params& p, const GradientRows& d_index_q, openmsa_dtype dtype, Launch launch) {
  const std::int64_t threads = num_places(p) * p.index_dim / kLaneChannels;
  with_element(dtype, [&](auto element) {
    cuda::launch("index_rows", index_rows_kernel<decltype(element)>,
                 {{ctas_for(threads, kFinishThreads)}, kFinishThreads, 0}, launch.stream, p, d_index_q);
  });
}

void launch_index_keys(const Params& p, const GradientRows& d_index_k, std::int32_t heads, openmsa_dtype dtype,
                       Launch launch) {
  const std::int64_t threads = std::int64_t{p.batch.total_k} * p.index_dim / kLaneChannels;
  with_element(dtype, [&](auto element) {
    cuda::launch("index_keys", index_keys_kernel<decltype(element)>,
                 {{ctas_for(threads, kFinishThreads)}, kFinishThreads, 0}, launch.stream, p, d_index_k, heads,
                 gradient_scale(dtype == OPENMSA_FLOAT16));
  });
}

void launch_write_loss(const Params& p, float* kl_loss, Launch launch) {
  cuda::launch("write_loss", write_loss_kernel, {{1}, 1, 0}, launch.stream, p, kl_loss);
}

}  // namespace openmsa::cuda::generic::training::kl
