// Two calls at the same time, on streams of their own: prompts, and decode steps.
#include "cuda/support/device_call.h"
#include "cuda/support/hopper.h"
#include "support/compare.h"
#include "support/gradients.h"
#include "support/selections.h"

namespace openmsa::test {
namespace {

struct Pair {
  openmsa_op op;
  bool is_decode;
};

std::vector<Pair> pairs() {
  std::vector<Pair> result = {{OPENMSA_OP_MSA_ATTENTION, true}};
  for (const openmsa_op op :
       {OPENMSA_OP_BLOCK_SCORES, OPENMSA_OP_TOPK, OPENMSA_OP_SELECT_BLOCKS, OPENMSA_OP_SPARSE_ATTENTION,
        OPENMSA_OP_MSA_ATTENTION, OPENMSA_OP_SPARSE_ATTENTION_BACKWARD, OPENMSA_OP_DENSE_ATTENTION_BACKWARD}) {
    result.push_back({op, false});
  }
  return result;
}

class DeviceStreams : public OnHopperWith<Pair> {
 protected:
  /// Large enough that every stage has work for many CTAs, whose order differs from run to run.
  static Layer prompts(std::int32_t page_size) {
    return ready(device_layer({.dtype = OPENMSA_BFLOAT16,
                               .num_heads_q = 16,
                               .head_dim = 128,
                               .block_size = 64,
                               .topk = 8,
                               .page_size = page_size,
                               .seqlens_q = {600, 1, 5, 300},
                               .seqlens_k = {4000, 900, 1300, 300}}));
  }

  static Layer decode(std::int32_t page_size) {
    return ready(device_layer({.dtype = OPENMSA_BFLOAT16,
                               .num_heads_q = 8,
                               .block_size = 64,
                               .page_size = page_size,
                               .seqlens_q = {16, 1, 2, 5},
                               .seqlens_k = {2900, 9000, 900, 300},
                               .padding_q = 2}));
  }

  static Layer ready(Layer layer) {
    layer.add({{"topk_indices", random_selection(layer, 9)}});
    layer.add(run(layer, OPENMSA_OP_SPARSE_ATTENTION));
    return layer.add(judged(layer, OPENMSA_OP_BLOCK_SCORES, OPENMSA_BACKEND_CPU));
  }
};
INSTANTIATE_TEST_SUITE_P(Operations, DeviceStreams, testing::ValuesIn(pairs()), [](const auto& info) {
  return std::string(name_of(info.param.op)) + (info.param.is_decode ? "_decode" : "");
});

TEST_P(DeviceStreams, DoNotDisturbEachOther) {
  const auto [op, is_decode] = GetParam();
  const std::int32_t page_size = is_backward(op) ? 0 : 32;
  DeviceCall calls[] = {{is_decode ? decode(0) : prompts(0), op},
                        {is_decode ? decode(page_size) : prompts(page_size), op}};
  const Stream streams[2];
  TensorMap alone[2];
  for (int i = 0; i < 2; ++i) {
    calls[i].enqueue(streams[i].get());
    alone[i] = calls[i].results();
  }
  for (int repeat = 0; repeat < 10; ++repeat) {
    for (DeviceCall& call : calls) call.poison();
    for (int i : {0, 1, 0, 1, 0, 1}) calls[i].enqueue(streams[i].get());
    for (int i = 0; i < 2; ++i) expect_same_bits(calls[i].results(), alone[i]);
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace openmsa::test
