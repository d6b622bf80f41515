// Tokens computed a few at a time behind a cache, and the same tokens within a prefill of the whole sequence.
#include "cuda/decode/cases.h"
#include "cuda/support/device_call.h"
#include "cuda/support/hopper.h"
#include "support/compare.h"

namespace openmsa::test {
namespace {

class DecodeEqualsPrefill : public OnHopperWith<std::int32_t> {
 protected:
  static constexpr std::int64_t kLength = 1100;

  void SetUp() override {
    OnHopper::SetUp();
    if (IsSkipped()) return;
    prompt_ = device_layer({.dtype = OPENMSA_BFLOAT16,
                            .num_heads_q = 8,
                            .block_size = GetParam(),
                            .topk = 4,
                            .seqlens_q = {kLength},
                            .seqlens_k = {kLength}});
    prefill_ = run(prompt_, OPENMSA_OP_MSA_ATTENTION);
    scores_ = judged(prompt_, OPENMSA_OP_BLOCK_SCORES, OPENMSA_BACKEND_CPU).at("block_scores");
  }

  /// [num_heads_kv, count, ...] of queries from `first` on.
  static Buffer queries(const Buffer& buffer, std::int64_t first, std::int64_t count) {
    const Shape& shape = buffer.shape();
    Buffer result(buffer.dtype(), {shape[0], count, shape[2]});
    for (std::int64_t r = 0; r < shape[0]; ++r) {
      for (std::int64_t t = 0; t < count; ++t) {
        for (std::int64_t i = 0; i < shape[2]; ++i) result.set({r, t, i}, buffer.at({r, first + t, i}));
      }
    }
    return result;
  }

  /// `decode`, an excerpt of the prompt from query `first` on, gives what the prefill gave.
  void expect_prefill(Layer decode, std::int64_t first) const {
    const std::int64_t count = decode.total_q();
    const Buffer chosen = queries(prefill_.at("topk_indices"), first, count);
    const TensorMap got = run(decode, OPENMSA_OP_MSA_ATTENTION);
    expect_same_selection(decode, got.at("topk_indices"), chosen, queries(scores_, first, count));
    decode.add({{"topk_indices", chosen}});
    expect_close(decode, run(decode, OPENMSA_OP_SPARSE_ATTENTION),
                 {{"o", rows(prefill_.at("o"), first, count)}, {"lse", rows(prefill_.at("lse"), first, count)}});
  }

  Layer prompt_;
  TensorMap prefill_;
  Buffer scores_;
};
INSTANTIATE_TEST_SUITE_P(BlockSizes, DecodeEqualsPrefill, testing::Values(64, 128), testing::PrintToStringParamName());

TEST_P(DecodeEqualsPrefill, BehindACacheOfTheEarlierTokens) {
  for (std::int64_t count = 1; count <= 16; ++count) {
    for (const std::int64_t end : {kLength, std::int64_t{8 * GetParam()}}) {
      SCOPED_TRACE(testing::Message() << count << " tokens up to " << end);
      const Layer last = excerpt(prompt_, 0, end - count, end);
      expect_prefill(last, end - count);
      expect_prefill(in_pages(last, 32), end - count);
    }
  }
}

/// Every token in some step, on both sides of kv_block boundaries, its keys appended in the step itself.
TEST_P(DecodeEqualsPrefill, ServedStepByStep) {
  const Layer paged = in_pages(prompt_, 16);
  TensorMap caches;
  for (const char* name : {"k_cache", "v_cache", "index_k_cache"}) {
    const Buffer& full = paged.tensors.at(name);
    caches[name] = Buffer(full.dtype(), full.shape());
  }
  std::int64_t done = 0;
  for (std::int64_t count = 300; done < kLength; count = std::min(kLength - done, 1 + (done * 7) % 16)) {
    SCOPED_TRACE(testing::Message() << count << " tokens from " << done);
    Layer step = excerpt(prompt_, 0, done, done + count);
    step.shape.page_size = step.config.page_size = paged.shape.page_size;
    step.tensors["block_table"] = paged.tensors.at("block_table");
    for (const char* name : {"k", "v", "index_k"}) step.tensors[name] = rows(prompt_.tensors.at(name), done, count);
    const DeviceCall append(step, OPENMSA_OP_APPEND_KV, caches);
    append.enqueue();
    caches = append.results();
    step.add(caches);
    expect_prefill(step, done);
    if (HasFailure()) return;
    done += count;
  }
  expect_same_bits(caches, {{"k_cache", paged.tensors.at("k_cache")},
                            {"v_cache", paged.tensors.at("v_cache")},
                            {"index_k_cache", paged.tensors.at("index_k_cache")}});
}

}  // namespace
}  // namespace openmsa::test
