// A decode step captured once: replayed after everything in memory has changed, and repeated. And after a kernel that
// writes lengths late.
#include <climits>

#include "cuda/decode/cases.h"
#include "cuda/support/device_call.h"
#include "cuda/support/hopper.h"
#include "cuda/support/late_copy.h"
#include "cuda/support/replays.h"
#include "support/compare.h"
#include "support/selections.h"

namespace openmsa::test {
namespace {

using Lengths = std::vector<std::int64_t>;

class DecodeGraph : public OnHopperWith<std::int32_t> {
 protected:
  /// Four sequences in memory for these lengths and no longer ones, in a plan for more.
  static Layer memory(std::uint64_t seed) {
    Layer layer = device_layer({.dtype = OPENMSA_BFLOAT16,
                                .num_heads_q = 8,
                                .block_size = 64,
                                .page_size = GetParam(),
                                .seqlens_q = {16, 1, 2, 5},
                                .seqlens_k = {2900, 9000, 900, 300},
                                .padding_q = 2},
                               seed, seed);
    layer.config.max_seqlen_k = 1 << 20;
    return layer;
  }

  static Layer step(const Layer& memory, Lengths seqlens_q, Lengths seqlens_k) {
    Layer layer = with_lengths(memory, std::move(seqlens_q), std::move(seqlens_k));
    return layer.add({{"topk_indices", random_selection(layer, 3)}});
  }

  static Layer full_step() { return step(memory(2), {16, 1, 2, 5}, {2900, 9000, 900, 300}); }

  static std::vector<Layer> steps() {
    const Layer first = memory(1), other = memory(2);
    std::vector<Layer> result;
    result.push_back(step(first, {4, 1, 2, 5}, {100, 2000, 700, 64}));
    result.push_back(step(first, {4, 1, 2, 5}, {101, 2001, 701, 65}));    // grown
    result.push_back(step(other, {1, 1, 1, 1}, {2900, 9000, 900, 300}));  // full; other values in other pages
    result.push_back(step(other, {16, 0, 3, 1}, {16, 0, 0, 7}));          // shrunk, some of it to nothing
    result.push_back(step(first, {1, 1, 1, 1}, {0, 0, 0, 0}));            // no request left
    result.push_back(step(first, {0, 16, 1, 1}, {640, 7000, 1, 129}));
    result.push_back(result.front());
    return result;
  }
};
INSTANTIATE_TEST_SUITE_P(PageSizes, DecodeGraph, testing::Values(0, 32), testing::PrintToStringParamName());

TEST_P(DecodeGraph, ReplayAfterChangesInPlaceEqualsAFreshRun) {
  const std::vector<Layer> all = steps();
  for (const openmsa_op op : {OPENMSA_OP_SELECT_BLOCKS, OPENMSA_OP_SPARSE_ATTENTION, OPENMSA_OP_MSA_ATTENTION}) {
    expect_replays_follow(all, op);
  }
}

TEST_P(DecodeGraph, TwentyReplaysAreEqual) { expect_equal_replays(full_step(), OPENMSA_OP_MSA_ATTENTION); }

TEST_P(DecodeGraph, LengthsMayBeWrittenByTheKernelBefore) {
  const Layer layer = full_step();
  const Stream stream;
  for (const openmsa_op op : {OPENMSA_OP_SELECT_BLOCKS, OPENMSA_OP_MSA_ATTENTION}) {
    SCOPED_TRACE(op);
    const TensorMap expected = run(layer, op);
    for (const std::vector<std::int32_t>& before : {std::vector<std::int32_t>{0, 0, 0, 0, 0},  // no request yet
                                                    {-5, 3, INT_MIN, INT_MAX, 7},              // nor lengths
                                                    {0, 1, 2, 3, 4},
                                                    {1 << 20, 1 << 20, 1 << 20, 1 << 20, 1 << 20}}) {
      DeviceCall call(layer, op);
      for (const openmsa_tensor& lengths :
           {call.tensors().cu_seqlens_q, GetParam() == 0 ? call.tensors().cu_seqlens_k : call.tensors().seqlens_k}) {
        auto* const data = static_cast<std::int32_t*>(lengths.data);
        const auto count = static_cast<std::size_t>(lengths.shape[0]);
        ASSERT_LE(count, before.size());
        const DeviceMemory right(count * sizeof(std::int32_t));
        require_cuda(cudaMemcpy(right.data(), data, right.bytes(), cudaMemcpyDeviceToDevice), "cudaMemcpy");
        require_cuda(cudaMemcpy(data, before.data(), right.bytes(), cudaMemcpyHostToDevice), "cudaMemcpy");
        enqueue_late_copy(data, reinterpret_cast<const std::int32_t*>(right.data()), static_cast<int>(count),
                          stream.get());
        call.enqueue(stream.get());
        stream.wait();
        expect_same_bits(call.results(), expected);
      }
    }
  }
}

}  // namespace
}  // namespace openmsa::test
