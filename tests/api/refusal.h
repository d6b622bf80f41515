// A call that would succeed, spoiled in one place, and what must come back.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "support/compare.h"

namespace openmsa::test {

/// A call that is about to be made.
struct Call {
  Layer layer;
  TensorMap outputs;
  Tensors tensors;
  openmsa_workspace workspace;
};

struct Refusal {
  std::string name;
  openmsa_op op;
  std::function<void(Call&)> spoil;
  std::vector<std::string> message;
  openmsa_status status = OPENMSA_INVALID_ARGUMENT;
  std::int32_t page_size = 0;
  bool is_fp8 = false;  // keys in e4m3 with scales per token: the caches, or without pages index_k
};

/// A call that would succeed: two sequences of 40 and 70 keys with 40 and 2 queries, kv_blocks of 32, topk 4.
inline Call valid_call(openmsa_op op, std::int32_t page_size, bool is_fp8) {
  LayerShape shape{.page_size = page_size, .seqlens_q = {40, 2}, .seqlens_k = {40, 70}};
  if (is_fp8) {
    shape.index_dtype = OPENMSA_FLOAT8_E4M3;
    if (page_size > 0) shape.kv_dtype = OPENMSA_FLOAT8_E4M3;
    shape.scales = Scales::kPerToken;
  }
  Layer layer = make_layer(shape);
  layer.add(run(layer, OPENMSA_OP_BLOCK_SCORES));
  layer.add(run(layer, OPENMSA_OP_MSA_ATTENTION));
  if (op == OPENMSA_OP_APPEND_KV) {
    for (const char* name : {"k", "v", "index_k"}) {
      layer.tensors[name] = rows(layer.tensors.at(name), 0, layer.total_q());
    }
  }
  TensorMap outputs = poisoned_outputs(layer, op);
  return {layer, outputs, openmsa::tensors(), {}};
}

/// The status, the parts of the message, and outputs as they were.
inline void expect_refused(const Refusal& refusal) {
  Call call = valid_call(refusal.op, refusal.page_size, refusal.is_fp8);
  const Plan plan(call.layer.config);
  alignas(64) static std::byte memory[1 << 26];
  call.workspace = {memory, plan.workspace_bytes(refusal.op), nullptr};
  ASSERT_LE(call.workspace.bytes, sizeof(memory));
  call.tensors = gather(call.layer, refusal.op, call.outputs);
  refusal.spoil(call);

  const TensorMap before = call.outputs;
  EXPECT_EQ(openmsa_run(plan.get(), refusal.op, &call.tensors, call.workspace), refusal.status);
  for (const std::string& part : refusal.message) EXPECT_THAT(openmsa_last_error(), testing::HasSubstr(part));
  expect_same_bits(call.outputs, before);
}

}  // namespace openmsa::test
