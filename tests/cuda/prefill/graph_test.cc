// A captured call, replayed after lengths, tables, selections and values changed in place.
#include "cuda/support/cases.h"
#include "cuda/support/device_call.h"
#include "cuda/support/hopper.h"
#include "cuda/support/replays.h"
#include "support/compare.h"
#include "support/selections.h"

namespace openmsa::test {
namespace {

struct Case {
  openmsa_op op;
  std::int32_t page_size;
  std::int64_t total_q;
};

class DeviceGraph : public OnHopperWith<Case> {
 protected:
  /// Sequences of the captured shape: every one of them has the same totals and the same longest sequence.
  static Layer step(std::vector<std::int64_t> seqlens_q, std::vector<std::int64_t> seqlens_k, std::uint64_t seed) {
    const Case& captured = GetParam();
    LayerShape shape{.dtype = OPENMSA_BFLOAT16,
                     .num_heads_q = 8,
                     .block_size = 64,
                     .page_size = captured.page_size,
                     .seqlens_q = std::move(seqlens_q),
                     .seqlens_k = std::move(seqlens_k)};
    shape.padding_q = captured.total_q;
    for (const std::int64_t length : shape.seqlens_q) shape.padding_q -= length;
    Layer layer = device_layer(shape, seed, seed);
    layer.config.max_seqlen_k = 6000;  // capacity beyond all that follows
    layer.config.max_batch = 6;
    layer.add(judged(layer, OPENMSA_OP_BLOCK_SCORES, OPENMSA_BACKEND_CPU));
    layer.add({{"topk_indices", random_selection(layer, seed)}});
    return layer.add(run(layer, OPENMSA_OP_SPARSE_ATTENTION));
  }

  /// All rows become padding, as in a captured decode step with no request left.
  static Layer emptied(Layer layer) {
    for (const char* name : {"cu_seqlens_q", "cu_seqlens_k", "seqlens_k"}) layer.tensors.at(name).fill(0);
    layer.tensors.at("topk_indices").fill(-1);
    if (layer.config.page_size > 0) layer.tensors.at("block_table").fill(-1);
    return layer;
  }
};

std::vector<Case> cases() {
  std::vector<Case> result;
  for (const openmsa_op op : {OPENMSA_OP_BLOCK_SCORES, OPENMSA_OP_TOPK, OPENMSA_OP_SELECT_BLOCKS,
                              OPENMSA_OP_SPARSE_ATTENTION, OPENMSA_OP_MSA_ATTENTION}) {
    for (const std::int32_t page_size : {0, 32}) {
      for (const std::int64_t total_q : {7, 400}) result.push_back({op, page_size, total_q});
    }
  }
  for (const openmsa_op op : {OPENMSA_OP_SPARSE_ATTENTION_BACKWARD, OPENMSA_OP_DENSE_ATTENTION_BACKWARD}) {
    result.push_back({op, 0, 400});
  }
  return result;
}

INSTANTIATE_TEST_SUITE_P(Operations, DeviceGraph, testing::ValuesIn(cases()),
                         [](const testing::TestParamInfo<Case>& info) {
                           return std::string(name_of(info.param.op)) +
                                  (info.param.page_size > 0 ? "_paged" : "_contiguous") +
                                  (info.param.total_q < 100 ? "_decode" : "_prefill");
                         });

TEST_P(DeviceGraph, ReplayAfterChangesInPlaceEqualsAFreshRun) {
  const std::int64_t most = GetParam().total_q < 100 ? 1 : 250;
  const Layer first = step({most, 1, 5, 0}, {300, 1900, 64, 129}, 1);
  const Layer steps[] = {first, step({1, most, 2, 3}, {129, 300, 1900, 64}, 2), emptied(first),
                         step({0, 1, 0, most}, {64, 129, 300, 1900}, 3), first};
  expect_replays_follow(steps, GetParam().op);
}

}  // namespace
}  // namespace openmsa::test
