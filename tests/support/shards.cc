#include "support/shards.h"

#include <functional>
#include <vector>

namespace openmsa::test {
namespace {

/// `one` of each rank's layer, stacked.
Buffer of_all_ranks(const Layer& layer, std::int32_t count, const std::function<Buffer(const Layer&)>& one) {
  std::vector<Buffer> slices;
  for (std::int32_t rank = 0; rank < count; ++rank) slices.push_back(one(shard_of(layer, count, rank)));
  return stacked(slices);
}

}  // namespace

Layer merging(const Layer& layer, std::int32_t count) {
  Layer result = layer;
  result.config.shard_count = count;
  result.config.shard_rank = count - 1;  // means nothing
  return result;
}

Buffer all_candidates(const Layer& layer, std::int32_t count) {
  return of_all_ranks(layer, count,
                      [](const Layer& shard) { return run(shard, OPENMSA_OP_SELECT_CANDIDATES).at("candidates"); });
}

Buffer selection_of_shards(const Layer& layer, std::int32_t count) {
  Layer merge = merging(layer, count);
  merge.tensors["all_candidates"] = all_candidates(layer, count);
  return run(merge, OPENMSA_OP_MERGE_CANDIDATES).at("topk_indices");
}

TensorMap part_of_shard(const Layer& shard) {
  TensorMap outputs = poisoned_outputs(shard, OPENMSA_OP_SPARSE_ATTENTION);
  outputs["o"] = Buffer(OPENMSA_FLOAT32, outputs.at("o").shape());
  run_into(shard, OPENMSA_OP_SPARSE_ATTENTION, outputs);
  return outputs;
}

Layer with_parts(const Layer& layer, std::int32_t count) {
  Layer merge = merging(layer, count);
  merge.tensors["partial_o"] =
      of_all_ranks(layer, count, [](const Layer& shard) { return part_of_shard(shard).at("o"); });
  merge.tensors["partial_lse"] =
      of_all_ranks(layer, count, [](const Layer& shard) { return part_of_shard(shard).at("lse"); });
  return merge;
}

}  // namespace openmsa::test
