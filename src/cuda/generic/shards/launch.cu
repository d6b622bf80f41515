#include "cuda/common/launch.h"
#include "cuda/generic/shards/kernels.h"
#include "cuda/generic/shards/merge_candidates.cuh"
#include "cuda/generic/shards/merge_partials.cuh"

namespace openmsa::cuda::generic {
namespace {

/// body(value of the element type)
template <class Body>
void visit_dtype(openmsa_dtype dtype, Body body) {
  if (dtype == OPENMSA_BFLOAT16) return body(__nv_bfloat16{});
  if (dtype == OPENMSA_FLOAT16) return body(__half{});
  body(float{});
}

}  // namespace

void launch_merge_candidates(const MergeCandidatesParams& p, Launch launch) {
  const unsigned int ctas = ctas_for(p.batch.total_q, kMergeWarps);
  cuda::launch("merge_candidates", merge_candidates_kernel,
               {{ctas, static_cast<unsigned int>(p.heads), 1}, kMergeWarps * 32, 0}, launch.stream, p);
}

void launch_merge_partials(const MergePartialsParams& p, openmsa_dtype part, openmsa_dtype result, Launch launch) {
  const std::int64_t threads = std::int64_t{p.batch.total_q} * p.heads * (p.head_dim / kPartialChannels);
  visit_dtype(part, [&](auto of_part) {
    visit_dtype(result, [&](auto of_result) {
      cuda::launch("merge_partials", merge_partials_kernel<decltype(of_part), decltype(of_result)>,
                   {ctas_for(threads, kPartialThreads), kPartialThreads, 0}, launch.stream, p);
    });
  });
}

}  // namespace openmsa::cuda::generic
