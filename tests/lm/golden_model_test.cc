// A two-layer model with a dense and a mixture-of-experts layer, run by transformers in bf16, rotary frequencies
// included. We compute in fp32, so that results agree to bf16's rounding, except where that tips a selection.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "lm/decoder.h"
#include "lm/generate.h"
#include "support/golden.h"

namespace openmsa::test {
namespace {

std::vector<std::int32_t> tokens_of(const io::StoredTensor& stored) {
  const auto* values = reinterpret_cast<const std::int64_t*>(stored.data);
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
  void SetUp() override {
    const auto path = golden_file("m3_layer_small_model");
    if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is absent";
    file_.emplace(path);
    lm::ModelConfig config = lm::config_from_json(nlohmann::json::parse(file_->metadata().at("config")));
    config.bf16_rope_frequencies = true;
    model_.emplace(lm::Model{config, lm::Parameters(std::make_shared<const lm::ParameterLayout>(config))});
    lm::read_all_parameters(*file_, "", model_->weights);
  }

  std::optional<io::SafetensorsFile> file_;
  std::optional<lm::Model> model_;
};

TEST_F(GoldenModel, LogitsAgree) {
  const auto tokens = tokens_of(file_->at("__ids"));
  const auto count = static_cast<std::int64_t>(tokens.size());
  lm::PackedAttention attention(model_->config, {1, count, count}, 0);
  lm::Decoder decoder(model_->config, model_->weights.layout(), lm::Decoder::Keep::kNothing);
  const auto logits =
      decoder.forward(model_->weights, attention, lm::Phase::kSparse, tokens, lm::packed_sequences({count}));
  const std::vector<float> expected = file_->at("__logits").to_float();
  ASSERT_EQ(logits.size(), expected.size());
  std::vector<double> errors;
  const auto vocab_size = static_cast<std::size_t>(model_->config.vocab_size);
  for (std::size_t row = 0; row < tokens.size(); ++row) {
    errors.push_back(relative_error(logits.subspan(row * vocab_size, vocab_size),
                                    std::span(expected).subspan(row * vocab_size, vocab_size)));
  }
  std::ranges::sort(errors);
  EXPECT_LT(errors[errors.size() / 2], 2e-2);
  EXPECT_LT(errors[errors.size() * 3 / 4], 3e-2);
}

TEST_F(GoldenModel, GreedyTokensAgree) {
  constexpr std::size_t kGenerated = 6;
  const auto tokens = tokens_of(file_->at("__greedy"));
  lm::GenerationOptions options;
  options.max_new_tokens = kGenerated;
  options.chunk = 100;
  const auto prompt = std::span(tokens).first(tokens.size() - kGenerated);
  const lm::Generation generation = lm::generate(*model_, prompt, options, [](std::int64_t) {});
  EXPECT_TRUE(std::ranges::equal(generation.tokens, std::span(tokens).last(kGenerated)));
}

}  // namespace
}  // namespace openmsa::test
