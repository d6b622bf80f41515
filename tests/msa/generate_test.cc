// msa generate and msa eval on a model with a tokenizer of its own.
#include <gmock/gmock.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "io/json_file.h"
#include "lm/checkpoint/checkpoint.h"
#include "msa/msa.h"
#include "tokenizer/tokenizer.h"

namespace openmsa::test {
namespace {

class TokenModel : public MsaTest {
 protected:
  static lm::ModelConfig config() {
    lm::ModelConfig config;
    config.vocab_size = 462;
    config.hidden_size = 32;
    config.num_heads_q = 4;
    config.head_dim = 16;
    config.rotary_dim = 8;
    config.index_dim = 16;
    config.block_size = 8;
    config.topk = 4;
    config.dense_intermediate_size = 32;
    config.layers.resize(2);
    config.layers[1].attention = lm::AttentionKind::kSparse;
    return config;
  }

  void SetUp() override {
    lm::Parameters weights(std::make_shared<const lm::ParameterLayout>(config()));
    lm::initialize(config(), 1, weights);
    lm::save_model(model_, config(), weights);
    std::filesystem::copy(OPENMSA_TOKENIZER_DATA "/words.json", model_ + "/tokenizer.json");
  }

  const std::string model_ = directory_ / "model";
};

TEST_F(TokenModel, GeneratesTextInTokens) {
  const MsaRun run = msa({"generate", "--model", model_, "--prompt", "the lazy dog", "--max-new-tokens", "20",
                          "--temperature", "1", "--json", directory_ / "json"});
  ASSERT_EQ(run.status, 0) << run.err;
  const nlohmann::json figures = io::read_json(directory_ / "json");
  const auto tokenizer = tokenizer::load_tokenizer(model_);
  EXPECT_EQ(figures.at("prompt_tokens"), tokenizer->encode_prompt("the lazy dog").size());
  EXPECT_LT(figures.at("prompt_tokens"), 12);
  EXPECT_EQ(figures.at("new_tokens"), 20);
  EXPECT_GT(run.out.size(), 21u) << "more bytes than tokens";
}

TEST_F(TokenModel, StopsWhereTheModelEndsTheText) {
  const std::vector<std::string> generate = {"generate",         "--model", model_,   "--prompt",         "x",
                                             "--max-new-tokens", "4",       "--json", directory_ / "json"};
  ASSERT_EQ(msa(generate).status, 0);
  const std::string first = io::read_json(directory_ / "json").at("continuation");
  nlohmann::json all = nlohmann::json::array();
  for (int token = 0; token < config().vocab_size; ++token) all.push_back(token);
  io::write_json(model_ + "/generation_config.json", {{"eos_token_id", all}});
  const MsaRun run = msa(generate);
  EXPECT_EQ(run.status, 0) << run.err;
  EXPECT_EQ(run.out, "\n") << "instead of " << first;
  io::write_json(model_ + "/generation_config.json", {{"eos_token_id", "stop"}});
  expect_refusal(msa(generate), "eos_token_id");
}

TEST_F(TokenModel, IsMeasuredPerByte) {
  std::ofstream text(directory_ / "text");
  for (int i = 0; i < 600; ++i) text << "the quick brown fox jumps over the lazy dog " << i << "\n";
  text.close();
  const MsaRun run =
      msa({"eval", "--model", model_, "--text", directory_ / "text", "--seqlen", "256", "--json", directory_ / "json"});
  ASSERT_EQ(run.status, 0) << run.err;
  const nlohmann::json figures = io::read_json(directory_ / "json");
  const double bytes = figures.at("bytes"), tokens = figures.at("tokens");
  EXPECT_LT(tokens, 0.8 * bytes);
  // Fresh weights know nothing: every token costs about log2(vocabulary) bits.
  EXPECT_NEAR(figures.at("bits_per_byte").get<double>(), 8.85 * tokens / bytes, 0.1);
}

TEST_F(TokenModel, RefusesAPromptOutsideTheVocabulary) {
  nlohmann::json tokenizer = io::read_json(model_ + "/tokenizer.json");
  tokenizer["added_tokens"].push_back({{"id", 5000}, {"content", "<far>"}});
  io::write_json(model_ + "/tokenizer.json", tokenizer);
  expect_refusal(msa({"generate", "--model", model_, "--prompt", "a<far>"}), "tokens below vocab_size = 462, got 5000");
}

TEST_F(TokenModel, RefusesABadTokenizer) {
  std::ofstream(model_ + "/tokenizer.json") << std::string(100000, '[');
  expect_refusal(msa({"generate", "--model", model_, "--prompt", "a"}), "tokenizer.json: nested too deeply");
  std::ofstream(model_ + "/tokenizer.json") << "{\"model\":{\"type\":\"Unigram\"}}";
  expect_refusal(msa({"generate", "--model", model_, "--prompt", "a"}), "is not supported");
}

TEST_F(TokenModel, NotesWhatATokenizerHasForBatches) {
  nlohmann::json tokenizer = io::read_json(model_ + "/tokenizer.json");
  tokenizer["truncation"] = {{"max_length", 5}};
  io::write_json(model_ + "/tokenizer.json", tokenizer);
  const MsaRun run = msa({"generate", "--model", model_, "--prompt", "the lazy dog", "--max-new-tokens", "2"});
  EXPECT_EQ(run.status, 0);
  EXPECT_EQ(run.err, "msa: note: " + model_ + "/tokenizer.json: truncation is ignored\n");
}

/// The prompt comes through a pipe, so that the model is mapped and not read yet when its file shrinks.
TEST_F(TokenModel, NamesAModelThatShrinks) {
  const std::string prompt = directory_ / "prompt";
  ASSERT_EQ(::mkfifo(prompt.c_str(), 0600), 0);
  std::jthread shrink([&] {
    std::ofstream pipe(prompt);  // opens once the command does
    std::filesystem::resize_file(model_ + "/model.safetensors", 100);
    pipe << "the lazy dog";
  });
  const MsaRun run = msa({"generate", "--model", model_, "--prompt-file", prompt});
  expect_refusal(run, model_ + "/model.safetensors: became shorter while it was read", 1);
}

}  // namespace
}  // namespace openmsa::test
