// The gradient of the sparse layer: attention's, and the KL loss with its gradients, the teacher detached.
#include "ref/stages.h"

namespace openmsa::ref {

template <class C>
void run_msa_attention_backward(const core::Problem& problem) {
  run_attention_backward<C>(problem);
  const openmsa_tensors tensors = core::without_teacher(problem.tensors);
  run_kl_loss<C>({problem.plan, tensors, problem.batch, problem.total_q});
}

template void run_msa_attention_backward<double>(const core::Problem&);
template void run_msa_attention_backward<float>(const core::Problem&);

}  // namespace openmsa::ref
