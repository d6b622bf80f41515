#include "cuda/sm80/training/tile_kernels.h"

#include "cuda/sm80/call.h"
#include "cuda/sm80/training/variants.h"

namespace openmsa::cuda::sm80::training {
namespace {

using core::Problem;
using generic::training::BackwardParams;
using generic::training::kl::Params;

/// For heads, or for the index branch.
const TrainingKernels& kernels_for(const Problem& problem, std::int32_t dim) {
  return *find_variant(kVariants, {problem.plan.config.dtype, dim}, "training");
}
const TrainingKernels& head_kernels(const Problem& problem) {
  return kernels_for(problem, problem.plan.config.head_dim);
}
const TrainingKernels& index_kernels(const Problem& problem) {
  return kernels_for(problem, problem.plan.config.index_dim);
}

KeyTensor index_keys(const Problem& problem) {
  return key_tensor(problem, problem.tensors.index_k, problem.tensors.index_k_cache, false);
}

void backward(const Problem& problem, const BackwardParams& p, Launch launch) {
  const openmsa_tensors& t = problem.tensors;
  const BackwardTensors tensors{query_rows(t.q), query_rows(t.d_o), key_tensor(problem, t.k, t.k_cache, true),
                                key_tensor(problem, t.v, t.v_cache, true)};
  head_kernels(problem).backward(p, tensors, launch);
}

void teacher(const Problem& problem, const Params& p, Launch launch) {
  const openmsa_tensors& t = problem.tensors;
  head_kernels(problem).teacher(p, {query_rows(t.q), key_tensor(problem, t.k, t.k_cache, true)}, launch);
}

void index_lse(const Problem& problem, const Params& p, Launch launch) {
  index_kernels(problem).index_lse(p, index_keys(problem), launch);
}

void kl_steps(const Problem& problem, const Params& p, Launch launch) {
  index_kernels(problem).kl(p, index_keys(problem), launch);
}

}  // namespace

const generic::training::TileKernels kTileKernels{backward, false, teacher, index_lse, kl_steps};

}  // namespace openmsa::cuda::sm80::training
