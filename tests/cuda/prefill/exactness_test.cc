// What must not change a single bit: the run, and other work on the device.
#include <optional>

#include "api/operations.h"
#include "cuda/support/cases.h"
#include "cuda/support/judge.h"

namespace openmsa::test {
namespace {

/// Large enough that every stage has work for many blocks of the grid, whose order differs from run to run.
Layer busy_layer(std::int32_t page_size = 0) {
  Layer layer = make_layer({.dtype = OPENMSA_BFLOAT16,
                            .num_heads_q = 16,
                            .head_dim = 128,
                            .block_size = 64,
                            .topk = 8,
                            .page_size = page_size,
                            .seqlens_q = {600, 1, 5, 300},
                            .seqlens_k = {4000, 900, 1300, 300}});
  layer.add({{"topk_indices", random_selection(layer, 9)}});
  return layer.add(judged(layer, OPENMSA_OP_BLOCK_SCORES, OPENMSA_BACKEND_CPU));
}

constexpr openmsa_op kOperations[] = {OPENMSA_OP_BLOCK_SCORES, OPENMSA_OP_TOPK, OPENMSA_OP_SELECT_BLOCKS,
                                      OPENMSA_OP_SPARSE_ATTENTION, OPENMSA_OP_MSA_ATTENTION};

std::string operation_name(const testing::TestParamInfo<openmsa_op>& info) {
  return api::operation(info.param, openmsa::config()).name;
}

class DeviceExactness : public OnHopperWith<openmsa_op> {};
INSTANTIATE_TEST_SUITE_P(Operations, DeviceExactness, testing::ValuesIn(kOperations), operation_name);

TEST_P(DeviceExactness, TwentyRunsAreEqual) {
  DeviceCall call(busy_layer(), GetParam());
  std::optional<TensorMap> first;
  for (int repeat = 0; repeat < 20; ++repeat) {
    call.poison();
    call.enqueue();
    const TensorMap results = call.results();
    if (!first) first = results;
    expect_same_bits(results, *first);
    if (HasFailure()) return;
  }
}

TEST_P(DeviceExactness, TwoStreamsDoNotDisturbEachOther) {
  const Layer layers[] = {busy_layer(), busy_layer(32)};
  DeviceCall calls[] = {{layers[0], GetParam()}, {layers[1], GetParam()}};
  const Stream streams[2];
  TensorMap alone[2];
  for (int i = 0; i < 2; ++i) {
    calls[i].enqueue(streams[i].get());
    alone[i] = calls[i].results();
  }
  for (int repeat = 0; repeat < 10; ++repeat) {
    for (DeviceCall& call : calls) call.poison();
    for (int i : {0, 1, 0, 1}) calls[i].enqueue(streams[i].get());
    for (int i = 0; i < 2; ++i) expect_same_bits(calls[i].results(), alone[i]);
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace openmsa::test
