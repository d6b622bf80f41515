#include "msa/verify/findings.h"

#include "judge/errors.h"
#include "judge/selection.h"
#include "judge/shards.h"
#include "judge/tolerance.h"

namespace openmsa::cli {
namespace {

using judge::Buffer;
using judge::Layer;
using judge::TensorMap;

Finding compare(const Layer& layer, openmsa_op op, const std::string& name, const Buffer& got, const Buffer& expected) {
  constexpr double kRecallAllowed = 1e-5;  // shares of probabilities that are summed in fp32
  const judge::Tolerance allowed = judge::tolerance(layer.config);
  if (name == "topk_indices") {  // ties of the scores that these read have one right order
    if (op == OPENMSA_OP_TOPK || op == OPENMSA_OP_MERGE_CANDIDATES)
      return {name, judge::different_bytes(got, expected), 0};
    const auto& scores = layer.tensors.at("block_scores");
    return {name, static_cast<double>(judge::selection_faults(layer, got, expected, scores).size()), 0};
  }
  if (name == "block_scores") return {name, judge::absolute_error(got, expected), allowed.score};  // near 1
  if (name == "candidates") {  // the kv_blocks themselves show in what is merged of them
    const Buffer scores = judge::candidate_scores(expected);
    return {name, judge::absolute_error(judge::comparable_scores(layer.config.backend, got, scores), scores),
            allowed.score};
  }
  if (name == "o") return {name, judge::relative_error(got, expected), allowed.o};
  if (name == "lse") return {name, judge::absolute_error(got, expected), allowed.lse};
  if (name.ends_with("_recall")) return {name, judge::absolute_error(got, expected), kRecallAllowed};
  if (name.ends_with("_cache") || name.ends_with("_scale")) return {name, judge::different_bytes(got, expected), 0};
  return {name, judge::relative_error(got, expected), allowed.gradient};
}

/// Names of them; empty: those that an operation has without being asked.
std::vector<std::string> outputs(openmsa_op op) {
  if (op != OPENMSA_OP_KL_LOSS) return {};
  return {"kl_loss", "d_index_q", "d_index_k", "d_q", "d_k"};
}

}  // namespace

double Finding::share() const { return error == 0 ? 0 : error / allowed; }

TensorMap outputs_of(const Layer& layer, openmsa_op op) { return judge::poisoned_outputs(layer, op, outputs(op)); }

TensorMap expected_results(const Layer& layer, openmsa_op op, const TensorMap& got) {
  if (op != OPENMSA_OP_MSA_ATTENTION) return judge::judged(layer, op, OPENMSA_BACKEND_REFERENCE, outputs(op));
  Layer selected = layer;
  selected.add({{"topk_indices", got.at("topk_indices")}});
  TensorMap expected = judge::judged(selected, OPENMSA_OP_SPARSE_ATTENTION);
  expected["topk_indices"] = layer.tensors.at("topk_indices");
  return expected;
}

std::vector<Finding> findings(const Layer& layer, openmsa_op op, const TensorMap& got, const TensorMap& expected) {
  std::vector<Finding> result;
  for (const char* name : tensor_names()) {
    const auto output = got.find(name);
    if (output != got.end()) result.push_back(compare(layer, op, name, output->second, expected.at(name)));
  }
  return result;
}

}  // namespace openmsa::cli
