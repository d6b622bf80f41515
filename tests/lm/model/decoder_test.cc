#include "lm/model/decoder.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "lm/ops/cross_entropy.h"
#include "lm/support.h"

namespace openmsa::test {
namespace {

class DecoderGradients : public testing::TestWithParam<lm::Phase> {};
INSTANTIATE_TEST_SUITE_P(Phases, DecoderGradients,
                         testing::Values(lm::Phase::kDense, lm::Phase::kWarmup, lm::Phase::kSparse));

/// L_LM + lambda sum L_KL through the whole model, with no stop-gradient.
TEST_P(DecoderGradients, MatchFiniteDifferences) {
  const lm::Phase phase = GetParam();
  const lm::KlOptions kl{2.0, true, true};
  const lm::ModelConfig config = tiny_config();
  const lm::Sequences sequences = lm::packed_sequences({27, 1, 14});
  const auto tokens = random_tokens(42, config.vocab_size, 1);
  const auto targets = random_tokens(42, config.vocab_size, 2);
  lm::Parameters weights = random_weights(config, 3);
  lm::PackedAttention attention(config, {3, 42, 27}, 1, OPENMSA_BACKEND_REFERENCE);
  lm::Decoder decoder(config, weights.layout(), lm::Decoder::Keep::kActivations);

  const auto loss = [&] {
    const double lm_loss = lm::cross_entropy(decoder.forward(weights, attention, phase, tokens, sequences), targets);
    const double kl_loss = phase == lm::Phase::kDense ? 0.0 : mean_kl_loss(decoder, attention, phase, sequences);
    return lm_loss + kl.weight * kl_loss;  // one sparse layer: the mean is the sum
  };
  loss();
  lm::Parameters gradients(weights.shared_layout());
  decoder.backward(weights, attention, phase, tokens, sequences, kl, gradients);
  for (const lm::Parameter& parameter : weights.layout().parameters()) {
    if (phase == lm::Phase::kDense && parameter.is_index()) continue;
    expect_gradient(parameter.name, weights.of(parameter), gradients.of(parameter), loss);
  }
}

std::vector<float> logits_of(const lm::ModelConfig& config, const lm::Parameters& weights, lm::Phase phase,
                             const std::vector<std::int32_t>& tokens, const lm::Sequences& sequences) {
  const std::int64_t count = sequences.num_tokens();
  lm::PackedAttention attention(config, {sequences.batch(), count, count}, 1);
  lm::Decoder decoder(config, weights.layout(), lm::Decoder::Keep::kNothing);
  const auto logits = decoder.forward(weights, attention, phase, tokens, sequences);
  return {logits.begin(), logits.end()};
}

TEST(Decoder, SparseEqualsDenseWhenEverythingIsSelected) {
  lm::ModelConfig config = tiny_config();
  config.topk = 8;
  const lm::Parameters weights = random_weights(config, 1);
  const auto tokens = random_tokens(60, config.vocab_size, 2);
  const lm::Sequences sequences = lm::packed_sequences({60});
  const auto sparse = logits_of(config, weights, lm::Phase::kSparse, tokens, sequences);
  const auto dense = logits_of(config, weights, lm::Phase::kDense, tokens, sequences);
  for (std::size_t i = 0; i < sparse.size(); ++i) ASSERT_NEAR(sparse[i], dense[i], 1e-4);
}

TEST(Decoder, SequencesOfABatchDoNotSeeEachOther) {
  const lm::ModelConfig config = tiny_config();
  const lm::Parameters weights = random_weights(config, 1);
  const auto tokens = random_tokens(74, config.vocab_size, 2);
  const std::vector<std::int32_t> first(tokens.begin(), tokens.begin() + 39);
  const std::vector<std::int32_t> second(tokens.begin() + 39, tokens.end());
  const auto packed = logits_of(config, weights, lm::Phase::kSparse, tokens, lm::packed_sequences({39, 35}));
  auto alone = logits_of(config, weights, lm::Phase::kSparse, first, lm::packed_sequences({39}));
  const auto rest = logits_of(config, weights, lm::Phase::kSparse, second, lm::packed_sequences({35}));
  alone.insert(alone.end(), rest.begin(), rest.end());
  for (std::size_t i = 0; i < packed.size(); ++i) ASSERT_NEAR(packed[i], alone[i], 1e-4);
}

TEST(Parameters, AModelAndItsDenseTwinStartEqual) {
  const lm::ModelConfig sparse_config = tiny_config();
  lm::ModelConfig dense_config = tiny_config();
  dense_config.layers[1].attention = lm::AttentionKind::kFull;
  lm::Parameters sparse(std::make_shared<const lm::ParameterLayout>(sparse_config));
  lm::Parameters dense(std::make_shared<const lm::ParameterLayout>(dense_config));
  lm::initialize(sparse_config, 7, sparse);
  lm::initialize(dense_config, 7, dense);
  EXPECT_LT(dense.layout().num_parameters(), sparse.layout().num_parameters());
  for (const lm::Parameter& parameter : dense.layout().parameters()) {
    const auto twin = sparse.of(sparse.layout().at(parameter.name));
    EXPECT_TRUE(std::ranges::equal(dense.of(parameter), twin)) << parameter.name;
  }
}

}  // namespace
}  // namespace openmsa::test
