#include "cuda/sm90/training/tile_kernels.h"

#include "cuda/common/call.h"
#include "cuda/sm90/training/kl/variants.h"
#include "cuda/sm90/training/variants.h"

namespace openmsa::cuda::sm90::training {
namespace {

using core::Problem;

TeacherMeans means(const TeacherRows& teacher, std::int64_t group_size) {
  if (teacher.data == nullptr) return TeacherMeans::kNone;
  return kTileRows / group_size <= kMostProductQueries ? TeacherMeans::kByProducts : TeacherMeans::kBetweenLanes;
}

void backward(const Problem& problem, const BackwardParams& p, Launch launch) {
  const openmsa_tensors& t = problem.tensors;
  const openmsa_config& config = problem.plan.config;
  const BackwardMaps maps{query_map(problem, t.q), query_map(problem, t.d_o),
                          key_map(problem, t.k, t.k_cache, true, kTileKeys, p.d_q_sums),
                          key_map(problem, t.v, t.v_cache, true, kTileKeys, p.d_q_sums)};
  const BackwardKey variant{config.dtype, config.head_dim, means(p.teacher, problem.plan.group_size)};
  find_variant(kBackwardVariants, variant, "backward")(p, maps, launch);
}

void teacher(const Problem& problem, const kl::Params& p, Launch launch) {
  const openmsa_tensors& t = problem.tensors;
  const openmsa_config& config = problem.plan.config;
  find_variant(kl::kTeacherVariants, {config.dtype, config.head_dim}, "kl_loss")(
      p, query_map(problem, t.q), key_map(problem, t.k, t.k_cache, true, kTileKeys, p.partials), launch);
}

/// A kernel of one of the tables over index_k.
template <std::size_t kCount>
void over_index_keys(const kl::IndexKeysVariant (&variants)[kCount], const Problem& problem, const kl::Params& p,
                     Launch launch) {
  const openmsa_tensors& t = problem.tensors;
  const openmsa_config& config = problem.plan.config;
  const CUtensorMap index_k = key_map(problem, t.index_k, t.index_k_cache, false, kTileKeys, p.partials);
  find_variant(variants, {config.dtype, config.index_dim}, "kl_loss")(p, index_k, launch);
}

void index_lse(const Problem& problem, const kl::Params& p, Launch launch) {
  over_index_keys(kl::kIndexLseVariants, problem, p, launch);
}

void kl_steps(const Problem& problem, const kl::Params& p, Launch launch) {
  over_index_keys(kl::kKlVariants, problem, p, launch);
}

}  // namespace

const generic::training::TileKernels kTileKernels{backward, true, teacher, index_lse, kl_steps};

}  // namespace openmsa::cuda::sm90::training
