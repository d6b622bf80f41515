// A backend's results beside those of the reference.
#pragma once

#include <string>
#include <vector>

#include "judge/call.h"

namespace openmsa::cli {

/// One result of an operation.
struct Finding {
  std::string result;  // its name in openmsa_tensors
  double error;
  double allowed;  // of the dtype; 0: every bit counts

  /// The error over what is allowed: up to 1 is right.
  double share() const;
};

/// All that `op` may write, poisoned.
judge::TensorMap outputs_of(const judge::Layer& layer, openmsa_op op);

/// What `op` gives of `layer` on the reference. For openmsa_msa_attention o and lse are those of attention over the
/// selection in `got`: close contenders may have changed places, and the selection is judged by the scores.
judge::TensorMap expected_results(const judge::Layer& layer, openmsa_op op, const judge::TensorMap& got);

/// Compares what the backend of the layer's plan has got. The layer has the reference's block_scores and topk_indices.
std::vector<Finding> findings(const judge::Layer& layer, openmsa_op op, const judge::TensorMap& got,
                              const judge::TensorMap& expected);

}  // namespace openmsa::cli
