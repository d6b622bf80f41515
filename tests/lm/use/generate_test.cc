#include "lm/use/generate.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "io/error.h"
#include "lm/model/kv_cache.h"
#include "lm/support.h"

namespace openmsa::test {
namespace {

lm::Model tiny_model() { return {tiny_config(), random_weights(tiny_config(), 1)}; }

std::vector<float> full_logits(const lm::Model& model, const std::vector<std::int32_t>& tokens) {
  const auto count = static_cast<std::int64_t>(tokens.size());
  lm::PackedAttention attention(model.config, {1, count, count}, 1);
  lm::Decoder decoder(model.config, model.weights.layout(), lm::Decoder::Keep::kNothing);
  const auto logits =
      decoder.forward(model.weights, attention, lm::Phase::kSparse, tokens, lm::packed_sequences({count}));
  return {logits.begin(), logits.end()};
}

TEST(KvCache, ChunksOfAnySizeEqualTheFullForwardPass) {
  const lm::Model model = tiny_model();
  const auto tokens = random_tokens(77, model.config.vocab_size, 2);
  const std::vector<float> expected = full_logits(model, tokens);
  for (const std::int64_t chunk : {1, 7, 8, 30, 77}) {
    lm::KvCache cache(model.config, 77, chunk, 1, 9);
    lm::Decoder decoder(model.config, model.weights.layout(), lm::Decoder::Keep::kNothing);
    std::vector<float> logits;
    for (std::int64_t begin = 0; begin < 77; begin += chunk) {
      const std::int64_t count = std::min(chunk, 77 - begin);
      const auto part = decoder.forward(model.weights, cache, lm::Phase::kSparse,
                                        std::span(tokens).subspan(begin, count), lm::one_chunk(begin, count));
      logits.insert(logits.end(), part.begin(), part.end());
    }
    ASSERT_EQ(logits.size(), expected.size());
    for (std::size_t i = 0; i < logits.size(); ++i) ASSERT_NEAR(logits[i], expected[i], 1e-4) << "chunk " << chunk;
  }
}

TEST(Generate, GreedyFollowsTheFullForwardPass) {
  const lm::Model model = tiny_model();
  std::vector<std::int32_t> tokens = random_tokens(20, model.config.vocab_size, 3);
  lm::GenerationOptions options;
  options.max_new_tokens = 12;
  options.chunk = 6;
  const lm::Generation generation = lm::generate(model, tokens, options, [](std::int32_t) {});
  for (const std::int32_t token : generation.tokens) {
    const auto logits = full_logits(model, tokens);
    const auto last = std::span(logits).last(static_cast<std::size_t>(model.config.vocab_size));
    ASSERT_EQ(token, std::ranges::max_element(last) - last.begin());
    tokens.push_back(token);
  }
}

TEST(Generate, SamplingDependsOnTheSeedAndNotOnTheChunk) {
  const lm::Model model = tiny_model();
  const auto prompt = random_tokens(20, model.config.vocab_size, 3);
  const auto run = [&](std::int64_t chunk, std::uint64_t seed) {
    lm::GenerationOptions options;
    options.max_new_tokens = 24;
    options.chunk = chunk;
    options.sampling = {1.0, 0.9};
    options.seed = seed;
    return lm::generate(model, prompt, options, [](std::int32_t) {}).tokens;
  };
  EXPECT_EQ(run(5, 1), run(20, 1));
  EXPECT_NE(run(5, 1), run(5, 2));
}

TEST(Generate, RefusesPromptsThatTheModelCannotRead) {
  const lm::Model model = tiny_model();
  const auto ignore = [](std::int32_t) {};
  EXPECT_THROW(lm::generate(model, {}, {}, ignore), io::InputError);
  EXPECT_THROW(lm::generate(model, std::vector<std::int32_t>{32}, {}, ignore), io::InputError);
}

}  // namespace
}  // namespace openmsa::test
