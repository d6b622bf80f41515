#include <gmock/gmock.h>

#include "cli/msa.h"
#include "io/json_file.h"
#include "lm/config.h"

namespace openmsa::test {
namespace {

using Bench = MsaTest;

TEST_F(Bench, DecodeMeasuresEveryContext) {
  for (const char* dtype : {"fp32", "bf16", "fp16"}) {
    const MsaRun run = msa({"bench", "decode", "--contexts", "100,1K", "--repeats", "2", "--batch", "3", "--topk", "2",
                            "--block-size", "32", "--dtype", dtype, "--json", directory_ / "bench.json"});
    EXPECT_EQ(run.status, 0) << run.err;
    const nlohmann::json bench = io::read_json(directory_ / "bench.json");
    EXPECT_EQ(bench["geometry"]["dtype"], dtype);
    ASSERT_EQ(bench["results"].size(), 2u);
    EXPECT_EQ(bench["results"][1]["context"], 1024);
    for (const char* part : {"sparse", "index", "attend", "dense"}) {
      const nlohmann::json& timing = bench["results"][1][part];
      EXPECT_GT(timing["min_ms"], 0) << part;
      EXPECT_LE(timing["min_ms"], timing["median_ms"]) << part;
      EXPECT_LE(timing["median_ms"], timing["max_ms"]) << part;
    }
    // 3 sequences x 1024 keys x K and V x 2 heads x 64 channels
    EXPECT_EQ(bench["results"][1]["dense"]["bytes"], 3 * 1024 * 2 * 2 * 64 * (dtype == std::string("fp32") ? 4 : 2));
  }
}

TEST_F(Bench, DecodeTakesTheGeometryOfAModel) {
  lm::ModelConfig config;
  config.num_heads_q = 6;
  config.num_heads_kv = 3;
  config.topk = 3;
  config.layers = {{lm::AttentionKind::kFull, lm::MlpKind::kDense}, {lm::AttentionKind::kSparse, lm::MlpKind::kDense}};
  io::write_json(directory_ / "config.json", lm::config_to_json(config));
  const MsaRun run = msa({"bench", "decode", "--model", directory_.path().string(), "--contexts", "256", "--repeats",
                          "1", "--json", directory_ / "bench.json"});
  EXPECT_EQ(run.status, 0) << run.err;
  const nlohmann::json geometry = io::read_json(directory_ / "bench.json")["geometry"];
  EXPECT_EQ(geometry["num_heads_q"], 6);
  EXPECT_EQ(geometry["num_heads_kv"], 3);
  EXPECT_EQ(geometry["topk"], 3);
}

TEST_F(Bench, PrefillMeasuresEveryStage) {
  const std::vector<std::string> layer = {"bench",          "prefill",
                                          "--num-heads-q",  "4",
                                          "--num-heads-kv", "2",
                                          "--head-dim",     "64",
                                          "--topk",         "2",
                                          "--repeats",      "1",
                                          "--json",         directory_ / "bench.json"};
  const auto stages = [&](std::vector<std::string> options) {
    options.insert(options.begin(), layer.begin(), layer.end());
    const MsaRun run = msa(options);
    EXPECT_EQ(run.status, 0) << run.err;
    std::vector<std::string> names;
    const nlohmann::json bench = io::read_json(directory_ / "bench.json");
    for (const nlohmann::json& row : bench["results"]) {
      EXPECT_GT(row["median_ms"], 0);
      names.push_back(row["tokens"].get<std::string>() + " " + row["stage"].get<std::string>());
    }
    return names;
  };
  EXPECT_THAT(stages({"--tokens", "100,1K"}),
              testing::ElementsAre("100 select", "100 attend", "100 whole", "100 dense", "1024 select", "1024 attend",
                                   "1024 whole", "1024 dense"));
  EXPECT_THAT(stages({"--queries", "30", "--prefix", "700", "--selection", "clustered", "--dtype", "fp32"}),
              testing::ElementsAre("30+700 attend", "30+700 dense"));
  EXPECT_THAT(stages({"--lengths", "129,1,640", "--selection", "random", "--dtype", "fp16"}),
              testing::ElementsAre("3 prompts attend", "3 prompts dense"));
}

TEST_F(Bench, PrefillCountsCausalOperations) {
  const MsaRun run =
      msa({"bench", "prefill", "--num-heads-q", "4", "--num-heads-kv", "2", "--head-dim", "64", "--index-dim", "64",
           "--topk", "1", "--tokens", "200", "--repeats", "1", "--json", directory_ / "bench.json"});
  ASSERT_EQ(run.status, 0) << run.err;
  const nlohmann::json results = io::read_json(directory_ / "bench.json")["results"];
  EXPECT_EQ(results[0]["operations"], 2 * 2 * 64 * (200 * 201 / 2));
  EXPECT_EQ(results[1]["operations"], 4 * 4 * 64 * (128 * 129 / 2 + 72 * 128));
  EXPECT_EQ(results[3]["operations"], 4 * 4 * 64 * (200 * 201 / 2));
}

}  // namespace
}  // namespace openmsa::test
