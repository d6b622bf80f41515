// Dense attention on the GPU where its kernels divide the work: long prompts, keys split over all SMs, many sequences,
// fp8 caches.
#include "cuda/decode/cases.h"
#include "cuda/support/cases.h"
#include "cuda/support/device_call.h"
#include "cuda/support/hopper.h"
#include "cuda/support/replays.h"
#include "support/compare.h"

namespace openmsa::test {
namespace {

constexpr openmsa_op kDense = OPENMSA_OP_DENSE_ATTENTION;

void expect_dense(const Layer& layer) {
  expect_close(layer, run(layer, kDense), judged(layer, kDense, OPENMSA_BACKEND_CPU));
}

class DenseGroups : public OnHopperWith<std::int32_t> {
 protected:
  static LayerShape shape(std::vector<std::int64_t> seqlens_q, std::vector<std::int64_t> seqlens_k) {
    return {.dtype = OPENMSA_BFLOAT16,
            .num_heads_q = 2 * GetParam(),
            .block_size = 128,
            .seqlens_q = std::move(seqlens_q),
            .seqlens_k = std::move(seqlens_k),
            .padding_q = 3};
  }
  /// With every dtype, head_dim and way of keeping keys, once each.
  static void expect_all(LayerShape shape) {
    struct Kind {
      openmsa_dtype dtype;
      std::int32_t head_dim, page_size;
    };
    for (const Kind& kind : {Kind{OPENMSA_BFLOAT16, 128, 0}, Kind{OPENMSA_FLOAT16, 64, 16},
                             Kind{OPENMSA_BFLOAT16, 64, 128}, Kind{OPENMSA_FLOAT16, 128, 64}}) {
      SCOPED_TRACE(testing::Message() << "head_dim " << kind.head_dim << ", page_size " << kind.page_size);
      shape.dtype = kind.dtype;
      shape.head_dim = kind.head_dim;
      shape.page_size = kind.page_size;
      expect_dense(device_layer(shape));
    }
  }
};
INSTANTIATE_TEST_SUITE_P(Groups, DenseGroups, testing::Values(1, 2, 4, 8, 16), testing::PrintToStringParamName());

TEST_P(DenseGroups, PromptsAndChunksBehindAPrefix) { expect_all(shape({300, 1, 400}, {1000, 900, 400})); }

TEST_P(DenseGroups, KeysSplitOverAllCtas) { expect_all(shape({1, 1, 1}, {9000, 70, 1001})); }

TEST_P(DenseGroups, SeveralQueriesOverSplitKeys) {
  for (const std::int64_t queries : {2, 7, 16}) expect_all(shape({queries, 1}, {2000, 300}));
}

std::vector<NamedShape> fp8_cache_shapes() {
  std::vector<NamedShape> shapes = fp8_decode_shapes();
  std::erase_if(shapes, [](const NamedShape& named) {
    return named.shape.kv_dtype != OPENMSA_FLOAT8_E4M3 || named.shape.index_dtype == OPENMSA_FLOAT8_E4M3;
  });
  return shapes;
}

class DenseFp8 : public OnHopperWith<NamedShape> {};
INSTANTIATE_TEST_SUITE_P(Shapes, DenseFp8, testing::ValuesIn(fp8_cache_shapes()), shape_name);

TEST_P(DenseFp8, MatchesTheCpu) {
  LayerShape shape = GetParam().shape;
  for (const std::int64_t queries : {1, 3, 40}) {
    SCOPED_TRACE(testing::Message() << queries << " queries of each sequence");
    shape.seqlens_q.assign(shape.seqlens_k.size(), queries);
    expect_dense(device_layer(shape));
    if (HasFailure()) return;
  }
}

class DenseBatch : public OnHopper {
 protected:
  /// Sequences of all lengths, some of them without queries or keys.
  static Layer many_sequences(std::size_t batch, std::int64_t most_queries) {
    LayerShape shape{.dtype = OPENMSA_BFLOAT16,
                     .num_heads_q = 8,
                     .block_size = 64,
                     .page_size = 16,
                     .seqlens_q = {},
                     .seqlens_k = {},
                     .padding_q = 5};
    for (std::size_t b = 0; b < batch; ++b) {
      const auto i = static_cast<std::int64_t>(b);
      shape.seqlens_q.push_back(i * 7 % (most_queries + 1));
      shape.seqlens_k.push_back(i % 11 == 3 ? 0 : i * 37 % 500);
    }
    return device_layer(shape);
  }
};

TEST_F(DenseBatch, OfManySequences) {
  for (const std::size_t batch : {31, 32, 33, 300}) {
    for (const std::int64_t most_queries : {1, 20}) {
      SCOPED_TRACE(testing::Message() << batch << " sequences, at most " << most_queries << " queries");
      expect_dense(many_sequences(batch, most_queries));
    }
  }
}

TEST_F(DenseBatch, TwentyRunsAreEqual) {
  for (const std::int64_t most_queries : {1, 16, 60}) {
    const Layer layer = many_sequences(40, most_queries);
    const TensorMap first = run(layer, kDense);
    for (int repeat = 1; repeat < 20; ++repeat) expect_same_bits(run(layer, kDense), first);
  }
}

/// A captured call, replayed after lengths, tables and values have changed in place.
TEST_F(DenseBatch, ReplayAfterChangesEqualsAFreshRun) {
  for (const std::int64_t most : {1, 250}) {
    const Layer memory = device_layer({.dtype = OPENMSA_BFLOAT16,
                                       .num_heads_q = 8,
                                       .block_size = 64,
                                       .page_size = 32,
                                       .seqlens_q = {most, 1, 2, 1},
                                       .seqlens_k = {2900, 9000, 900, 300},
                                       .padding_q = 2});
    const Layer steps[] = {with_lengths(memory, {most, 1, 2, 1}, {2900, 9000, 900, 300}),
                           with_lengths(memory, {1, 1, 1, most}, {130, 8000, 1, 299}),
                           with_lengths(memory, {0, 1, 0, 0}, {0, 0, 0, 0}), memory};
    SCOPED_TRACE(testing::Message() << "at most " << most << " queries");
    expect_replays_follow(steps, kDense);
  }
}

}  // namespace
}  // namespace openmsa::test
