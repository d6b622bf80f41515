#include "lm/training/training_options.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "io/error.h"

namespace openmsa::test {
namespace {

TEST(LearningRate, WarmsUpThenFollowsHalfACosine) {
  lm::TrainingOptions options;
  options.steps = 110;
  options.lr_warmup = 10;
  options.lr = 1.0;
  options.min_lr = 0.1;
  EXPECT_DOUBLE_EQ(lm::learning_rate(options, 1), 0.1);
  EXPECT_DOUBLE_EQ(lm::learning_rate(options, 10), 1.0);
  EXPECT_NEAR(lm::learning_rate(options, 60), 0.55, 1e-12);
  EXPECT_NEAR(lm::learning_rate(options, 110), 0.1, 1e-12);
  options.lr_warmup = 0;
  EXPECT_NEAR(lm::learning_rate(options, 110), 0.1, 1e-12);
}

TEST(TrainingOptions, SurviveARoundTrip) {
  lm::TrainingOptions options;
  options.text = {"/a", "b c", "no UTF-8: \xff"};
  options.kl = {0.5, true, false};
  options.seed = 12345678901234567890u;
  options.lr = 0.1 + 0.2;
  const nlohmann::json written = lm::options_to_json(options);
  const lm::TrainingOptions read = lm::options_from_json(nlohmann::json::parse(written.dump()));
  EXPECT_EQ(lm::options_to_json(read), written);
  EXPECT_EQ(read.seed, options.seed);
  EXPECT_EQ(read.lr, options.lr);
  EXPECT_EQ(read.text, options.text);
}

TEST(TrainingOptions, AreCheckedAsThoseOfTheCommandLine) {
  const nlohmann::json good = lm::options_to_json({});
  EXPECT_NO_THROW(lm::options_from_json(good));
  const std::pair<const char*, nlohmann::json> changes[] = {{"steps", 0},
                                                            {"steps", 1.5},
                                                            {"steps", 1e30},
                                                            {"batch", 4097},
                                                            {"seqlen", 1},
                                                            {"short_seqlen", 0},
                                                            {"lr", -1},
                                                            {"lr", nullptr},
                                                            {"clip", 0},
                                                            {"seed", -1},
                                                            {"log_every", 0},
                                                            {"recall_every", "20"},
                                                            {"weight_decay", 1e10},
                                                            {"lr_warmup", -1},
                                                            {"kl", {{"weight", -1}}}};
  for (const auto& [name, value] : changes) {
    nlohmann::json bad = good;
    if (value.is_object()) {
      bad[name].update(value);
    } else {
      bad[name] = value;
    }
    EXPECT_THROW(lm::options_from_json(bad), io::InputError) << name << " = " << value;
  }
}

}  // namespace
}  // namespace openmsa::test
