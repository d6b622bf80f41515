// The entry points: each function of the C API is its operation.
#include <gtest/gtest.h>

#include <cstring>

#include "support/compare.h"

namespace openmsa::test {
namespace {

using Function = openmsa_status (*)(const openmsa_plan*, const openmsa_tensors*, openmsa_workspace);

struct Entry {
  openmsa_op op;
  Function function;
};

constexpr Entry kEntries[] = {{OPENMSA_OP_BLOCK_SCORES, openmsa_block_scores},
                              {OPENMSA_OP_TOPK, openmsa_topk},
                              {OPENMSA_OP_SELECT_BLOCKS, openmsa_select_blocks},
                              {OPENMSA_OP_SPARSE_ATTENTION, openmsa_sparse_attention},
                              {OPENMSA_OP_MSA_ATTENTION, openmsa_msa_attention},
                              {OPENMSA_OP_DENSE_ATTENTION, openmsa_dense_attention},
                              {OPENMSA_OP_SPARSE_ATTENTION_BACKWARD, openmsa_sparse_attention_backward},
                              {OPENMSA_OP_DENSE_ATTENTION_BACKWARD, openmsa_dense_attention_backward},
                              {OPENMSA_OP_KL_LOSS, openmsa_kl_loss},
                              {OPENMSA_OP_BLOCK_RECALL, openmsa_block_recall},
                              {OPENMSA_OP_MSA_ATTENTION_BACKWARD, openmsa_msa_attention_backward}};

Layer small_layer() {
  Layer layer = make_layer({.seqlens_q = {20, 3}, .seqlens_k = {20, 70}});
  layer.add(run(layer, OPENMSA_OP_BLOCK_SCORES));
  return layer.add(run(layer, OPENMSA_OP_MSA_ATTENTION));
}

TEST(Call, EveryFunctionIsItsOperation) {
  const Layer layer = small_layer();
  const Plan plan(layer.config);
  for (const Entry& entry : kEntries) {
    TensorMap outputs = poisoned_outputs(layer, entry.op);
    const Tensors tensors = gather(layer, entry.op, outputs);
    Workspace workspace;
    EXPECT_EQ(entry.function(plan.get(), &tensors, workspace.reserve(plan.workspace_bytes(entry.op))), OPENMSA_SUCCESS)
        << openmsa_last_error();
    expect_same_bits(outputs, run(layer, entry.op));
  }
}

TEST(Call, WithoutPrefixSumsTheTensorsAreOneSequence) {
  Layer layer = make_layer({.seqlens_q = {20}, .seqlens_k = {70}});
  const TensorMap expected = run(layer, OPENMSA_OP_MSA_ATTENTION);
  layer.tensors.erase("cu_seqlens_q");
  layer.tensors.erase("cu_seqlens_k");
  expect_same_bits(run(layer, OPENMSA_OP_MSA_ATTENTION), expected);
}

TEST(Call, AnEmptyBatchIsNoError) {
  Layer layer = make_layer({.seqlens_q = {0}, .seqlens_k = {0}});
  for (const openmsa_backend backend : {OPENMSA_BACKEND_REFERENCE, OPENMSA_BACKEND_CPU}) {
    for (const char* lengths : {"one empty sequence", "no sequence"}) {
      SCOPED_TRACE(lengths);
      for (const Entry& entry : kEntries) {
        Layer empty = layer.on(backend);
        if (std::strcmp(lengths, "no sequence") == 0) {
          empty.tensors["cu_seqlens_q"] = int_buffer({0});
          empty.tensors["cu_seqlens_k"] = int_buffer({0});
          empty.tensors["seqlens_k"] = Buffer(OPENMSA_INT32, {0});
        }
        const openmsa_dtype figure = backend == OPENMSA_BACKEND_CPU ? OPENMSA_FLOAT32 : OPENMSA_FLOAT64;
        empty.add({{"o", Buffer(OPENMSA_FLOAT32, {0, 4, 64})},
                   {"lse", Buffer(figure, {0, 4})},
                   {"block_scores", Buffer(figure, {2, 0, 0})},
                   {"topk_indices", Buffer(OPENMSA_INT32, {2, 0, 4})}});
        const TensorMap outputs = run(empty, entry.op);
        const auto kl_loss = outputs.find("kl_loss");
        if (kl_loss != outputs.end()) {
          EXPECT_EQ(kl_loss->second[0], 0);
        }
      }
    }
  }
}

}  // namespace
}  // namespace openmsa::test
