#include <gmock/gmock.h>

#include <fstream>
#include <random>

#include "io/json_file.h"
#include "msa/msa.h"

namespace openmsa::test {
namespace {

class Eval : public MsaTest {
 protected:
  /// A model after one step on text of random letters, whose end is held out.
  void train(const std::string& attention) const {
    std::mt19937_64 random(1);
    std::ofstream text(directory_ / "text");
    for (int i = 0; i < 12000; ++i) text << static_cast<char>('a' + random() % 26);
    text.close();
    std::vector<std::string> arguments = {"train",
                                          "--output",
                                          directory_ / "model",
                                          "--text",
                                          directory_ / "text",
                                          "--attention",
                                          attention,
                                          "--steps",
                                          "1",
                                          "--batch",
                                          "1",
                                          "--seqlen",
                                          "32",
                                          "--short-batch",
                                          "0",
                                          "--layers",
                                          "2",
                                          "--hidden",
                                          "32",
                                          "--heads-q",
                                          "4",
                                          "--heads-kv",
                                          "2",
                                          "--head-dim",
                                          "16",
                                          "--intermediate",
                                          "32"};
    if (attention == "msa") {
      arguments.insert(arguments.end(), {"--index-dim", "16", "--block-size", "8", "--topk", "4"});
    }
    const MsaRun run = msa(arguments);
    ASSERT_EQ(run.status, 0) << run.err;
  }

  nlohmann::json evaluate(std::vector<std::string> options) const {
    options.insert(options.begin(), {"eval", "--model", directory_ / "model", "--text", directory_ / "text", "--json",
                                     directory_ / "eval.json"});
    const MsaRun run = msa(options);
    EXPECT_EQ(run.status, 0) << run.err;
    return io::read_json(directory_ / "eval.json");
  }
};

TEST_F(Eval, IndexKeysInFp8HaveFiguresOfTheirOwn) {
  train("msa");
  const nlohmann::json plain = evaluate({}), both = evaluate({"--index-dtype", "e4m3"});
  EXPECT_FALSE(plain.contains("block_recall_e4m3"));
  for (const char* figure : {"bits_per_byte", "block_recall", "score_recall", "kl_loss"}) {
    EXPECT_EQ(plain[figure], both[figure]) << figure;
  }
  for (const std::string figure : {"block_recall", "score_recall"}) {
    const double exact = both[figure], rounded = both[figure + "_e4m3"];
    EXPECT_NEAR(rounded, exact, 0.1) << figure;
    EXPECT_NE(rounded, exact) << figure << ": some of 600 queries chooses other blocks";
  }
}

TEST_F(Eval, DenseModelsHaveNoIndexKeys) {
  train("dense");
  expect_refusal(msa({"eval", "--model", directory_ / "model", "--text", directory_ / "text", "--index-dtype", "e4m3"}),
                 "--index-dtype e4m3: expected layers that attend sparsely");
}

}  // namespace
}  // namespace openmsa::test
