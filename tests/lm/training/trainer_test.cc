#include "lm/training/trainer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "io/error.h"
#include "io/safetensors.h"
#include "lm/checkpoint/checkpoint.h"
#include "lm/ops/random.h"
#include "lm/support.h"
#include "lm/training/train.h"
#include "lm/use/evaluate.h"
#include "lm/use/selection_map.h"
#include "support/temporary_directory.h"

namespace openmsa::test {
namespace {

/// Text with something to learn: a few words in an order that a generator picks.
std::string sample_text() {
  const char* words[] = {"static ", "const ", "int ", "return ", "float value;\n", "for (int i = 0; i < n; ++i) "};
  lm::Random random(1);
  std::string text;
  while (text.size() < 20000) text += words[random.below(std::size(words))];
  return text;
}

lm::ModelConfig byte_config() {
  lm::ModelConfig config = tiny_config();
  config.vocab_size = 256;
  config.initializer_range = 0.05;
  return config;
}

lm::TrainingOptions short_run() {
  lm::TrainingOptions options;
  options.steps = 12;
  options.batch = 2;
  options.seqlen = 48;
  options.short_batch = 3;
  options.short_seqlen = 16;
  options.lr = 1e-2;
  options.min_lr = 1e-3;
  options.lr_warmup = 2;
  options.warmup_steps = 5;
  return options;
}

std::vector<lm::StepFigures> run_steps(lm::Trainer& trainer, int count) {
  std::vector<lm::StepFigures> figures;
  for (int i = 0; i < count; ++i) figures.push_back(trainer.step(false));
  return figures;
}

TEST(Trainer, LossFallsThroughBothPhases) {
  const std::string text = sample_text();
  lm::TrainingOptions options = short_run();
  options.steps = 60;
  options.warmup_steps = 20;
  lm::Trainer trainer(lm::fresh_state(byte_config(), options), text, 2);
  const auto figures = run_steps(trainer, 60);
  EXPECT_NEAR(figures.front().loss, std::log(256.0), 0.3);
  EXPECT_LT(figures.back().loss, 0.6 * figures.front().loss);
  EXPECT_EQ(figures[19].phase, lm::Phase::kWarmup);
  EXPECT_EQ(figures[20].phase, lm::Phase::kSparse);
  EXPECT_TRUE(figures.back().kl_loss.has_value());
}

TEST(Trainer, AGivenSelectionReplacesThatOfTheIndexBranch) {
  const std::string text = sample_text();
  lm::TrainingOptions options = short_run();
  options.warmup_steps = 0;
  const auto loss = [&](bool only_first_block) {
    lm::Trainer trainer(lm::fresh_state(byte_config(), options), text, 2);
    if (only_first_block) {
      const std::int64_t tokens = lm::packed_sequences(lm::sequence_lengths(options)).num_tokens();
      std::vector<std::int32_t> selection(tokens * byte_config().num_heads_kv * byte_config().topk, -1);
      for (std::size_t i = 0; i < selection.size(); i += byte_config().topk) selection[i] = 0;
      trainer.set_selection(selection);
    }
    return trainer.step(false).loss;
  };
  EXPECT_NE(loss(true), loss(false));
}

TEST(Trainer, ResumesToTheSameLosses) {
  const TemporaryDirectory directory;
  const std::string text = sample_text();
  lm::Trainer whole(lm::fresh_state(byte_config(), short_run()), text, 2);
  const auto expected = run_steps(whole, 12);

  lm::Trainer first(lm::fresh_state(byte_config(), short_run()), text, 2);
  run_steps(first, 4);
  lm::save_state(directory / "state", first.state());
  lm::Trainer second(lm::load_state(directory / "state"), text, 1);  // another number of threads, too
  const auto resumed = run_steps(second, 8);
  for (std::size_t i = 0; i < resumed.size(); ++i) {
    EXPECT_EQ(resumed[i].step, expected[i + 4].step);
    EXPECT_EQ(resumed[i].loss, expected[i + 4].loss);
    EXPECT_EQ(resumed[i].kl_loss, expected[i + 4].kl_loss);
    EXPECT_EQ(resumed[i].grad_norm, expected[i + 4].grad_norm);
  }
  EXPECT_TRUE(std::ranges::equal(second.state().weights.values(), whole.state().weights.values()));
}

TEST(Trainer, TakesNoStepWhoseLossIsNan) {
  const std::string text = sample_text();
  lm::TrainingState state = lm::fresh_state(byte_config(), short_run());
  state.weights.of(state.weights.layout().at("lm_head.weight")).front() = std::nanf("");
  const std::vector<float> before(state.weights.values().begin(), state.weights.values().end());
  lm::Trainer trainer(std::move(state), text, 2);
  EXPECT_THROW(trainer.step(false), std::runtime_error);
  EXPECT_EQ(trainer.state().step, 0);
  const auto after = trainer.state().weights.values();
  EXPECT_EQ(std::memcmp(before.data(), after.data(), before.size() * sizeof(float)), 0);
}

TEST(Trainer, RefusesMixturesOfExperts) {
  lm::ModelConfig config = byte_config();
  config.layers[1].mlp = lm::MlpKind::kMoe;
  config.num_experts = config.num_experts_per_token = 2;
  config.expert_intermediate_size = config.shared_intermediate_size = 8;
  EXPECT_THROW(lm::Trainer(lm::fresh_state(config, short_run()), sample_text(), 1), io::InputError);
}

TEST(Trainer, RefusesAVocabularySmallerThanBytes) {
  EXPECT_THROW(lm::Trainer(lm::fresh_state(tiny_config(), short_run()), sample_text(), 1), io::InputError);
}

std::vector<nlohmann::json> log_of(const TemporaryDirectory& directory) {
  std::vector<nlohmann::json> events;
  std::ifstream stream(directory / "run/log.jsonl");
  for (std::string line; std::getline(stream, line);) events.push_back(nlohmann::json::parse(line));
  return events;
}

/// A run that stops after a checkpoint and goes on writes the log and the model of a run that does not stop.
TEST(Train, WritesLogAndModelAndResumesFromACheckpoint) {
  const TemporaryDirectory directory;
  std::ofstream(directory / "text.txt") << sample_text();
  lm::TrainingOptions options = short_run();
  options.text = {directory / "text.txt"};
  options.recall_every = 6;
  options.checkpoint_every = 5;
  const auto run = directory.path() / "run";
  lm::train(lm::fresh_state(byte_config(), options), run, 2, [](const auto&) {});
  const auto whole = log_of(directory);
  ASSERT_EQ(whole.size(), 14u);
  EXPECT_EQ(whole.front().at("event"), "start");
  EXPECT_EQ(whole.back().at("event"), "end");
  EXPECT_EQ(whole[5].at("phase"), "warmup");
  EXPECT_EQ(whole[6].at("phase"), "sparse");
  EXPECT_TRUE(whole[6].contains("block_recall") && whole[6].contains("score_recall"));
  EXPECT_FALSE(whole[7].contains("block_recall"));
  const lm::Model expected = lm::load_model(run);

  struct Stop {};
  const auto stop_at_8 = [](const lm::StepFigures& figures) {
    if (figures.step == 8) throw Stop();
  };
  EXPECT_THROW(lm::train(lm::fresh_state(byte_config(), options), run, 2, stop_at_8), Stop);
  lm::train(lm::load_state(run / lm::kStateFile), run, 2, [](const auto&) {});
  const auto resumed = log_of(directory);
  ASSERT_EQ(resumed.size(), whole.size());
  for (std::size_t i = 1; i + 1 < whole.size(); ++i) EXPECT_EQ(resumed[i].at("loss"), whole[i].at("loss")) << i;
  EXPECT_TRUE(std::ranges::equal(values_of(lm::load_model(run).weights), values_of(expected.weights)));
  EXPECT_THROW(lm::train(lm::load_state(run / lm::kStateFile), run, 2, [](const auto&) {}), io::InputError);
}

class TrainingRun : public testing::Test {
 protected:
  TrainingRun() {
    std::ofstream(directory_ / "text.txt") << sample_text();
    options_ = short_run();
    options_.text = {directory_ / "text.txt"};
  }

  std::int64_t train(const std::function<bool()>& stop = [] { return false; }) const {
    return lm::train(
        lm::fresh_state(byte_config(), options_), run_, 2, [](const auto&) {}, stop);
  }
  std::int64_t resume() const {
    return lm::train(lm::load_state(run_ / lm::kStateFile), run_, 2, [](const auto&) {});
  }

  const TemporaryDirectory directory_;
  const std::filesystem::path run_ = directory_.path() / "run";
  lm::TrainingOptions options_;
};

TEST_F(TrainingRun, StopsWhereItIsAskedToAndGoesOnFromThere) {
  EXPECT_EQ(train(), 12);
  const auto expected = log_of(directory_);
  int asked = 0;
  EXPECT_EQ(train([&] { return ++asked == 5; }), 5);
  EXPECT_EQ(log_of(directory_).size(), 6u) << "start and five steps";
  EXPECT_EQ(lm::load_state(run_ / lm::kStateFile).step, 5);
  EXPECT_EQ(resume(), 12);
  const auto resumed = log_of(directory_);
  ASSERT_EQ(resumed.size(), expected.size());
  EXPECT_EQ(resumed[12].at("loss"), expected[12].at("loss"));
}

TEST_F(TrainingRun, KeepsTheLastCheckpointWhenItDiverges) {
  options_.lr = 1e30;
  options_.checkpoint_every = 1;
  EXPECT_THROW(train(), std::runtime_error);
  for (const auto& event : log_of(directory_)) EXPECT_FALSE(event.contains("loss") && event["loss"].is_null());
  const lm::Model model = lm::load_model(run_);
  EXPECT_TRUE(std::ranges::all_of(values_of(model.weights), [](float value) { return std::isfinite(value); }));
}

TEST_F(TrainingRun, KnowsTheFilesOfAnEarlierOneAndMixesThemWithNoOther) {
  EXPECT_FALSE(lm::earlier_run(run_));
  train();
  EXPECT_EQ(lm::earlier_run(run_), (run_ / lm::kStateFile).string());
  struct Stop {};
  const auto stop = [](const lm::StepFigures&) { throw Stop(); };
  EXPECT_THROW(lm::train(lm::fresh_state(byte_config(), options_), run_, 2, stop), Stop);
  EXPECT_EQ(lm::earlier_run(run_), (run_ / "log.jsonl").string())
      << "the log of the second run, and no model of the first";
  EXPECT_FALSE(std::filesystem::exists(run_ / "model.safetensors"));
}

TEST_F(TrainingRun, ResumesWhateverTheLogHolds) {
  int asked = 0;
  train([&] { return ++asked == 5; });
  const std::string deep = std::string(1 << 20, '[') + std::string(1 << 20, ']');
  for (const std::string& line :
       {std::string("5"), std::string("[]"), std::string(R"({"event":7})"),
        std::string(R"({"event":"step","step":"3"})"), std::string("{"), R"({"event":)" + deep + "}"}) {
    std::filesystem::copy(run_, directory_.path() / "copy", std::filesystem::copy_options::recursive);
    std::ofstream(directory_ / "copy/log.jsonl") << line << "\n";
    const auto copy = directory_.path() / "copy";
    EXPECT_EQ(lm::train(lm::load_state(copy / lm::kStateFile), copy, 2, [](const auto&) {}), 12) << line;
    std::filesystem::remove_all(copy);
  }
}

TEST_F(TrainingRun, ChecksTheNumbersOfAState) {
  lm::TrainingState state = lm::fresh_state(byte_config(), options_);
  for (const std::int64_t step : {-1, 13}) {
    state.step = step;
    lm::save_state(directory_ / "state", state);
    EXPECT_THROW(lm::load_state(directory_ / "state"), io::InputError) << step;
  }
  state.step = 0;
  state.options.clip = -1;
  lm::save_state(directory_ / "state", state);
  EXPECT_THROW(lm::load_state(directory_ / "state"), io::InputError);
}

/// The state with `value` beside the options that it knows.
void add_option(const std::filesystem::path& path, const std::string& value) {
  const io::SafetensorsFile file(path);
  io::SafetensorsWriter writer;
  for (const auto& [name, tensor] : file.tensors()) writer.add(name, tensor.type, tensor.shape, tensor.data);
  for (const auto& [key, text] : file.metadata()) {
    writer.set_metadata(key, key == "options" ? text.substr(0, text.size() - 1) + ",\"x\":" + value + "}" : text);
  }
  writer.write(path.string() + ".more");
}

/// What reads them copies them, in memory and on the stack.
TEST_F(TrainingRun, BoundsTheOptionsOfAState) {
  lm::save_state(directory_ / "state", lm::fresh_state(byte_config(), options_));
  const auto load_with = [&](const std::string& value) {
    add_option(directory_ / "state", value);
    lm::load_state(directory_ / "state.more");
  };
  EXPECT_NO_THROW(load_with("[[1]]"));
  EXPECT_THROW(load_with(std::string(100, '[') + std::string(100, ']')), io::InputError);
  std::string zeros = "[0";
  for (int i = 0; i < 5'000'000; ++i) zeros += ",0";
  EXPECT_THROW(load_with(zeros + "]"), io::InputError);
}

TEST(Evaluate, RefusesAModelOfNans) {
  const std::string bytes = sample_text();
  lm::Parameters weights = random_weights(byte_config(), 1);
  std::ranges::fill(weights.of(weights.layout().at("lm_head.weight")), std::nanf(""));
  const auto ignore = [](std::int64_t, std::int64_t) {};
  const lm::Text text{bytes, {{"sample", 0, bytes.size()}}};
  lm::EvaluationOptions options;
  options.seqlen = 48;
  options.max_bytes = 96;
  const lm::Model model{byte_config(), std::move(weights)};
  EXPECT_THROW(lm::evaluate(model, tokenizer::ByteTokenizer(), text, options, ignore), io::InputError);
}

TEST(Evaluate, MeasuresHeldOutText) {
  const std::string bytes = sample_text();
  const lm::Text text{bytes, {{"sample", 0, bytes.size()}}};
  lm::Trainer trainer(lm::fresh_state(byte_config(), short_run()), bytes, 2);
  run_steps(trainer, 12);
  const lm::Model model{trainer.state().config, trainer.state().weights};
  lm::EvaluationOptions options;
  options.seqlen = 48;
  options.max_bytes = 48 * 7;
  options.batch = 3;
  const auto ignore = [](std::int64_t, std::int64_t) {};
  const lm::Evaluation result = lm::evaluate(model, tokenizer::ByteTokenizer(), text, options, ignore);
  EXPECT_EQ(result.bytes, 48 * 7);
  EXPECT_GT(result.bits_per_byte, 0.5);
  EXPECT_LT(result.bits_per_byte, 8.0);
  ASSERT_TRUE(result.recall && result.kl_loss);
  EXPECT_GT(result.recall->block, 0.3);
  EXPECT_LE(result.recall->score, 1.0);
  options.batch = 1;  // the same windows, one by one
  EXPECT_NEAR(lm::evaluate(model, tokenizer::ByteTokenizer(), text, options, ignore).bits_per_byte,
              result.bits_per_byte, 1e-5);
  options.max_bytes = 5;
  EXPECT_EQ(lm::evaluate(model, tokenizer::ByteTokenizer(), text, options, ignore).bytes, 5);
  options.dense = true;
  EXPECT_FALSE(lm::evaluate(model, tokenizer::ByteTokenizer(), text, options, ignore).recall.has_value());
}

TEST(SelectionMap, ListsTheBlocksOfEvenlySpacedQueries) {
  const lm::ModelConfig config = byte_config();
  const lm::Model model{config, random_weights(config, 1)};
  const auto map = lm::selection_map(model, tokenizer::ByteTokenizer(), sample_text().substr(0, 300), 1);
  EXPECT_EQ(map.at("block_size"), 8);
  EXPECT_EQ(map.at("seqlen"), 300);
  ASSERT_EQ(map.at("layers").size(), 1u);
  EXPECT_EQ(map.at("layers")[0].at("layer"), 1);
  ASSERT_EQ(map.at("layers")[0].at("groups").size(), 2u);
  const auto& rows = map.at("layers")[0].at("groups")[1].at("rows");
  ASSERT_EQ(rows.size(), 128u);
  for (const auto& row : rows) {
    const int query = row.at("query");
    EXPECT_EQ(row.at("blocks").back(), query / 8);
    EXPECT_EQ(row.at("blocks").size(), std::min<std::size_t>(2, query / 8 + 1));
  }
  EXPECT_EQ(rows.back().at("query"), 299);
}

}  // namespace
}  // namespace openmsa::test
