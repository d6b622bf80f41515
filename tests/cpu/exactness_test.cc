// What must not change a single bit on the CPU: the number of threads, the rest of the batch, chunking.
#include <gtest/gtest.h>

#include "support/compare.h"
#include "support/many_threads.h"

namespace openmsa::test {
namespace {

const auto* const kManyThreads = testing::AddGlobalTestEnvironment(new ManyThreads);

/// A ragged batch large enough that several threads find work.
LayerShape batch_shape() {
  return {.num_heads_q = 8, .topk = 3, .seqlens_q = {150, 1, 75, 40}, .seqlens_k = {150, 333, 75, 200}};
}

/// Decode and speculation over many kv_blocks, which are split between threads.
LayerShape decode_shape() {
  return {.num_heads_q = 8, .block_size = 16, .topk = 6, .seqlens_q = {1, 16, 4}, .seqlens_k = {1000, 700, 40}};
}

LayerShape in_bf16(const LayerShape& like) {
  LayerShape shape = like;
  shape.dtype = OPENMSA_BFLOAT16;
  return shape;
}

/// The tensors that every operation on contiguous keys reads.
Layer trained_layer(const LayerShape& shape) {
  Layer layer = make_layer(shape);
  return layer.add(run(layer, OPENMSA_OP_MSA_ATTENTION));
}

constexpr openmsa_op kDeterministic[] = {OPENMSA_OP_BLOCK_SCORES,    OPENMSA_OP_SELECT_BLOCKS,
                                         OPENMSA_OP_MSA_ATTENTION,   OPENMSA_OP_SPARSE_ATTENTION,
                                         OPENMSA_OP_DENSE_ATTENTION, OPENMSA_OP_SPARSE_ATTENTION_BACKWARD,
                                         OPENMSA_OP_KL_LOSS,         OPENMSA_OP_DENSE_ATTENTION_BACKWARD,
                                         OPENMSA_OP_BLOCK_RECALL,    OPENMSA_OP_MSA_ATTENTION_BACKWARD};

class ExactnessOfThreads : public testing::TestWithParam<openmsa_op> {};
INSTANTIATE_TEST_SUITE_P(Operations, ExactnessOfThreads, testing::ValuesIn(kDeterministic),
                         [](const testing::TestParamInfo<openmsa_op>& info) {
                           return std::string(name_of(info.param));
                         });

TEST_P(ExactnessOfThreads, NumberOfThreadsDoesNotMatter) {
  for (const LayerShape& shape : {batch_shape(), decode_shape(), in_bf16(batch_shape()), in_bf16(decode_shape())}) {
    Layer layer = trained_layer(shape);
    layer.config.num_threads = 1;
    const TensorMap alone = run(layer, GetParam());
    for (const std::int32_t num_threads : {2, 3, 7}) {
      SCOPED_TRACE(num_threads);
      layer.config.num_threads = num_threads;
      expect_same_bits(run(layer, GetParam()), alone);
    }
  }
}

/// The teacher's gradient has sums of its own, and the dense KL loss another path.
TEST(ExactnessOfKl, NumberOfThreadsDoesNotMatter) {
  Layer layer = trained_layer(batch_shape());
  layer.tensors.erase("topk_indices");
  layer.add(run(layer, OPENMSA_OP_DENSE_ATTENTION));
  layer.config.num_threads = 1;
  const std::vector<std::string> outputs = {"kl_loss", "d_q", "d_k", "d_index_q", "d_index_k"};
  const TensorMap alone = run(layer, OPENMSA_OP_KL_LOSS, outputs);
  for (const std::int32_t num_threads : {2, 3, 7}) {
    layer.config.num_threads = num_threads;
    expect_same_bits(run(layer, OPENMSA_OP_KL_LOSS, outputs), alone);
  }
}

/// Rows of the whole batch's results that belong to the excerpt.
void expect_rows_equal(const Layer& whole, const TensorMap& results, std::int64_t first_row, const Layer& part) {
  const TensorMap own = run(part, OPENMSA_OP_MSA_ATTENTION);
  for (const char* name : {"o", "lse"}) {
    EXPECT_TRUE(rows(results.at(name), first_row, part.total_q()).same_bits(own.at(name))) << name;
  }
  for (std::int64_t r = 0; r < whole.shape.num_heads_kv; ++r) {
    for (std::int64_t t = 0; t < part.total_q(); ++t) {
      EXPECT_EQ(selection_row(results.at("topk_indices"), r, first_row + t),
                selection_row(own.at("topk_indices"), r, t));
    }
  }
}

void expect_sequences_alone(const LayerShape& shape) {
  const Layer layer = make_layer(shape);
  const TensorMap results = run(layer, OPENMSA_OP_MSA_ATTENTION);
  std::int64_t first_row = 0;
  for (std::size_t b = 0; b < layer.shape.seqlens_q.size(); ++b) {
    SCOPED_TRACE(b);
    expect_rows_equal(layer, results, first_row, excerpt(layer, b, 0, layer.shape.seqlens_q[b]));
    first_row += layer.shape.seqlens_q[b];
  }
}

TEST(ExactnessOfBatches, ASequenceDoesNotSeeItsNeighbours) {
  LayerShape shape = batch_shape();
  expect_sequences_alone(shape);
  shape.index_dtype = OPENMSA_FLOAT8_E4M3;
  for (const Scales scales : {Scales::kOne, Scales::kPerToken}) {
    shape.scales = scales;
    expect_sequences_alone(shape);
  }
  for (const auto rounding : {OPENMSA_INDEX_Q_CAST, OPENMSA_INDEX_Q_EXACT}) {
    shape.index_q_rounding = rounding;
    expect_sequences_alone(shape);
    expect_sequences_alone(in_bf16(shape));
  }
}

TEST(ExactnessOfChunks, PrefillInPiecesEqualsPrefillAtOnce) {
  for (const LayerShape& shape : {batch_shape(), in_bf16(batch_shape())}) {
    const Layer layer = make_layer(shape);
    const TensorMap results = run(layer, OPENMSA_OP_MSA_ATTENTION);
    std::int64_t begin = 0;
    for (const std::int64_t end : {1, 2, 33, 97, 100, 150}) {  // of sequence 0
      SCOPED_TRACE(testing::Message() << "queries " << begin << " to " << end);
      expect_rows_equal(layer, results, begin, excerpt(layer, 0, begin, end));
      begin = end;
    }
  }
}

TEST(ExactnessOfChunks, DecodeOverManyBlocksEqualsPrefillAtOnce) {
  const Layer layer = make_layer({.block_size = 16, .topk = 6, .seqlens_q = {1000}, .seqlens_k = {1000}});
  const TensorMap results = run(layer, OPENMSA_OP_MSA_ATTENTION);
  for (const auto& [begin, end] : {std::pair{999, 1000}, {984, 1000}, {700, 705}, {30, 900}}) {
    SCOPED_TRACE(testing::Message() << "queries " << begin << " to " << end);
    expect_rows_equal(layer, results, begin, excerpt(layer, 0, begin, end));
  }
}

}  // namespace
}  // namespace openmsa::test
