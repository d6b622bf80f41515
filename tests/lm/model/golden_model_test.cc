// A two-layer model with a dense and a mixture-of-experts layer, run by transformers in bf16 with eager attention, its
// rotary frequencies rounded to bf16 too.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "io/safetensors.h"
#include "lm/model/decoder.h"
#include "lm/model/eager_attention.h"
#include "lm/use/generate.h"
#include "support/golden.h"

namespace openmsa::test {
namespace {

std::vector<std::int32_t> tokens_of(const io::StoredTensor& stored) {
  const auto* values = reinterpret_cast<const std::int32_t*>(stored.data);
  return {values, values + stored.size()};
}

double relative_error(std::span<const float> x, std::span<const float> reference) {
  double difference = 0.0;
  double norm = 0.0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    difference += std::pow(static_cast<double>(x[i]) - reference[i], 2);
    norm += std::pow(static_cast<double>(reference[i]), 2);
  }
  return std::sqrt(difference / norm);
}

class GoldenModel : public testing::Test {
 protected:
  /// Relative errors of the logits' rows, in ascending order.
  std::vector<double> row_errors(lm::Attention& attention) const {
    const auto tokens = tokens_of(expected_.at("ids"));
    lm::Decoder decoder(model_.config, model_.weights.layout(), lm::Decoder::Keep::kNothing);
    const auto logits = decoder.forward(model_.weights, attention, lm::Phase::kSparse, tokens,
                                        lm::packed_sequences({static_cast<std::int64_t>(tokens.size())}));
    const std::vector<float> expected = expected_.at("logits").to_float();
    EXPECT_EQ(logits.size(), expected.size());
    std::vector<double> errors;
    const auto vocab_size = static_cast<std::size_t>(model_.config.vocab_size);
    for (std::size_t row = 0; row < tokens.size(); ++row) {
      errors.push_back(relative_error(logits.subspan(row * vocab_size, vocab_size),
                                      std::span(expected).subspan(row * vocab_size, vocab_size)));
    }
    std::ranges::sort(errors);
    return errors;
  }

  const io::SafetensorsFile expected_{golden_file("m3_model_expected.safetensors")};
  const lm::Model model_ = lm::load_model(golden_file("m3_model"));
};

double quantile(const std::vector<double>& sorted, double share) {
  return sorted[static_cast<std::size_t>(share * static_cast<double>(sorted.size() - 1))];
}

/// What bf16 rounding means for this model: transformers, run again on another machine with the same eager attention,
/// differs from the file by 0.66 % in the median row and 1.0 % in the 95th of 100; in the last two of 100 a near-tie
/// of two experts or blocks tips the other way, and rows differ by up to 63 %. We match that.
TEST_F(GoldenModel, LogitsAgreeWithEagerAttention) {
  EagerAttention attention(model_.config);
  const auto errors = row_errors(attention);
  EXPECT_LT(quantile(errors, 0.5), 0.8e-2);
  EXPECT_LT(quantile(errors, 0.75), 1.0e-2);
  EXPECT_LT(quantile(errors, 0.95), 1.2e-2);
}

/// Our own attention keeps scores and probabilities in fp32, as fused kernels do. transformers with its fused attention
/// ("sdpa") differs from the file by 1.46 % in the median row, 1.65 % in the 75th of 100 and 9.7 % in the 90th.
TEST_F(GoldenModel, LogitsAgree) {
  const std::int64_t count = expected_.at("ids").size();
  lm::PackedAttention attention(model_.config, {1, count, count}, 0);
  const auto errors = row_errors(attention);
  EXPECT_LT(quantile(errors, 0.5), 1.6e-2);
  EXPECT_LT(quantile(errors, 0.75), 1.8e-2);
  EXPECT_LT(quantile(errors, 0.9), 3e-2);
}

TEST_F(GoldenModel, GreedyTokensAgree) {
  constexpr std::size_t kGenerated = 6;
  const auto tokens = tokens_of(expected_.at("greedy"));
  lm::GenerationOptions options;
  options.max_new_tokens = kGenerated;
  options.chunk = 100;
  const auto prompt = std::span(tokens).first(tokens.size() - kGenerated);
  const lm::Generation generation = lm::generate(model_, prompt, options, [](std::int32_t) {});
  EXPECT_TRUE(std::ranges::equal(generation.tokens, std::span(tokens).last(kGenerated)));
}

}  // namespace
}  // namespace openmsa::test
