// Decode of batches: how many sequences, how many queries in each, how long they are.
#include "cuda/decode/cases.h"
#include "cuda/support/device_call.h"
#include "cuda/support/hopper.h"
#include "pitfalls/fixture.h"
#include "support/compare.h"
#include "support/selections.h"

namespace openmsa::test {
namespace {

using Lengths = std::vector<std::int64_t>;

class DecodeBatches : public OnHopperWith<std::int64_t> {};
INSTANTIATE_TEST_SUITE_P(Sequences, DecodeBatches, testing::Values(1, 3, 64, 200), testing::PrintToStringParamName());

/// Lengths next to the boundaries of kv_blocks, many times a short one, now and then a long one.
TEST_P(DecodeBatches, OfMixedLengthsMatchTheCpu) {
  for (const std::int32_t block_size : {64, 128}) {
    std::mt19937_64 random(static_cast<std::uint64_t>(GetParam() + block_size));
    Lengths seqlens_k;
    for (std::int64_t b = 0; b < GetParam(); ++b) {
      const auto blocks = static_cast<std::int64_t>(random() % (b % 16 == 0 ? 40 : 4));
      seqlens_k.push_back(std::max<std::int64_t>(0, blocks * block_size + static_cast<std::int64_t>(random() % 5) - 2));
    }
    const Layer most = device_layer({.dtype = OPENMSA_BFLOAT16,
                                     .num_heads_q = 4,
                                     .num_heads_kv = 1,
                                     .block_size = block_size,
                                     .topk = 3,
                                     .page_size = 32,
                                     .seqlens_q = Lengths(seqlens_k.size(), 16),
                                     .seqlens_k = seqlens_k});
    for (const std::uint64_t most_queries : {1, 2, 16}) {
      SCOPED_TRACE(testing::Message() << "block " << block_size << ", up to " << most_queries << " queries");
      Lengths seqlens_q;
      for (std::size_t b = 0; b < seqlens_k.size(); ++b) {
        seqlens_q.push_back(static_cast<std::int64_t>(1 + random() % most_queries));
      }
      expect_layer(with_lengths(most, seqlens_q, seqlens_k), OPENMSA_BACKEND_CPU);
      if (HasFailure()) return;
    }
  }
}

class DecodeQueries : public OnHopper {
 protected:
  static LayerShape shape(Lengths seqlens_q, Lengths seqlens_k) {
    return {.dtype = OPENMSA_BFLOAT16,
            .num_heads_q = 8,
            .block_size = 64,
            .topk = 3,
            .page_size = 16,
            .seqlens_q = std::move(seqlens_q),
            .seqlens_k = std::move(seqlens_k)};
  }
};

TEST_F(DecodeQueries, OneToSixteenOfASequence) {
  const Layer most = device_layer(shape({16}, {900}));
  for (std::int64_t count = 1; count <= 16; ++count) {
    SCOPED_TRACE(testing::Message() << count << " queries");
    expect_layer(with_lengths(most, {count}, {900}));
  }
}

/// Few on average is what counts: some sequences have none, one may have more than sixteen.
TEST_F(DecodeQueries, UnevenlySpread) {
  expect_layer(device_layer(shape({16, 1, 0, 3, 0, 0, 16, 2}, {330, 900, 64, 3, 0, 500, 16, 129})));
  expect_layer(device_layer(shape({0, 0, 40, 1, 0}, {64, 900, 300, 129, 0})));
  expect_layer(device_layer(shape({0, 60, 0, 0}, {64, 60, 0, 129})));
}

/// From one implementation to the other, and in a plan that could take a prefill.
TEST_F(DecodeQueries, AboutSixteenPerSequence) {
  for (const std::int64_t middle : {15, 16, 17}) {
    Layer layer = device_layer(shape({16, middle, 16}, {330, 900, 64}));
    layer.config.max_total_q = 4000;
    layer.config.max_batch = 50;
    layer.config.max_seqlen_k = 100000;
    SCOPED_TRACE(testing::Message() << 32 + middle << " queries of 3 sequences");
    expect_layer(layer);
  }
}

class DecodeLongContext : public OnHopper {};

TEST_F(DecodeLongContext, OneOfTwoHundredThousandKeysBesideShortOnes) {
  const Layer layer = device_layer({.dtype = OPENMSA_BFLOAT16,
                                    .num_heads_q = 4,
                                    .num_heads_kv = 1,
                                    .block_size = 128,
                                    .topk = 16,
                                    .seqlens_q = {1, 4, 16},
                                    .seqlens_k = {700, 200001, 0}});
  expect_layer(layer, OPENMSA_BACKEND_CPU);
}

/// Sixteen queries without a kv_block in common, and with all but one in common: their unions have 1024 blocks and 80.
TEST_F(DecodeLongContext, UnionsOfDisjointAndSharedBlocks) {
  Layer layer = device_layer({.dtype = OPENMSA_FLOAT16,
                              .num_heads_q = 2,
                              .num_heads_kv = 1,
                              .block_size = 64,
                              .topk = 64,
                              .seqlens_q = {16},
                              .seqlens_k = {1024 * 64 + 16}});
  Buffer disjoint(OPENMSA_INT32, {1, 16, 64}), shared = disjoint;
  for (std::int64_t row = 0; row < 16; ++row) {
    for (std::int64_t slot = 0; slot < 64; ++slot) {
      disjoint.set({0, row, slot}, static_cast<double>((63 - slot) * 16 + row));
      shared.set({0, row, slot}, static_cast<double>(slot == row ? 900 + row : slot * 3));
    }
  }
  for (const Buffer& indices : {disjoint, shared, random_selection(layer, 5)}) {
    layer.tensors["topk_indices"] = indices;
    expect_attention(layer, OPENMSA_BACKEND_CPU);
  }
}

}  // namespace
}  // namespace openmsa::test
