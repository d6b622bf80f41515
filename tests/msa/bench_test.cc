#include <gmock/gmock.h>

#include "io/json_file.h"
#include "lm/model/config.h"
#include "msa/msa.h"

namespace openmsa::test {
namespace {

class Bench : public MsaTest {
 protected:
  /// The only row of msa bench decode on a small layer, with more `options`.
  nlohmann::json decode_row(std::vector<std::string> options) const {
    const std::vector<std::string> small = {"bench", "decode",    "--contexts", "4K",     "--topk",
                                            "4",     "--repeats", "1",          "--json", json_};
    options.insert(options.begin(), small.begin(), small.end());
    const MsaRun run = msa(options);
    EXPECT_EQ(run.status, 0) << run.err;
    return io::read_json(json_)["results"][0];
  }

  /// msa bench train of a model that is quickly trained, with more `options`.
  std::vector<std::string> small_train(std::vector<std::string> options) const {
    const std::vector<std::string> small = {
        "bench",      "train", "--layers",      "2",  "--hidden",       "32", "--heads-q", "2",  "--heads-kv", "1",
        "--head-dim", "16",    "--index-dim",   "16", "--intermediate", "32", "--topk",    "2",  "--batch",    "2",
        "--seqlen",   "200",   "--short-batch", "0",  "--repeats",      "1",  "--json",    json_};
    options.insert(options.begin(), small.begin(), small.end());
    return options;
  }

  const std::string json_ = directory_ / "bench.json";
};

TEST_F(Bench, DecodeMeasuresEveryContext) {
  for (const char* dtype : {"fp32", "bf16", "fp16"}) {
    const MsaRun run = msa({"bench", "decode", "--contexts", "100,1K", "--repeats", "2", "--batch", "3", "--topk", "2",
                            "--block-size", "32", "--dtype", dtype, "--json", json_});
    EXPECT_EQ(run.status, 0) << run.err;
    const nlohmann::json bench = io::read_json(json_);
    EXPECT_EQ(bench["geometry"]["dtype"], dtype);
    ASSERT_EQ(bench["results"].size(), 2u);
    EXPECT_EQ(bench["results"][1]["context"], 1024);
    for (const char* part : {"sparse", "index", "attend", "dense"}) {
      const nlohmann::json& timing = bench["results"][1][part];
      EXPECT_GT(timing["min_ms"], 0) << part;
      EXPECT_LE(timing["min_ms"], timing["median_ms"]) << part;
      EXPECT_LE(timing["median_ms"], timing["max_ms"]) << part;
    }
    EXPECT_GT(bench["copy_gb_per_s"], 0);
    EXPECT_GT(bench["results"][1]["dense"]["share_of_copy"], 0);
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
                          "1", "--json", json_});
  EXPECT_EQ(run.status, 0) << run.err;
  const nlohmann::json geometry = io::read_json(json_)["geometry"];
  EXPECT_EQ(geometry["num_heads_q"], 6);
  EXPECT_EQ(geometry["num_heads_kv"], 3);
  EXPECT_EQ(geometry["topk"], 3);
}

TEST_F(Bench, DecodeQueriesChooseTogetherAsFarAsTheyAgree) {
  const auto chosen = [&](const char* agreement) {
    return decode_row({"--queries", "4", "--agreement", agreement})["chosen_kv_blocks"].get<double>();
  };
  EXPECT_EQ(chosen("1"), 4);
  EXPECT_GT(chosen("0.9"), 4);
  EXPECT_GT(chosen("0"), chosen("0.9"));
  EXPECT_LE(chosen("0"), 4 * 3 + 1) << "all have the local kv_block";
}

TEST_F(Bench, DecodeCountsWhatIsRead) {
  const nlohmann::json row = decode_row({"--batch", "3", "--page-size", "32"});
  EXPECT_EQ(row["index"]["bytes"], 3 * 4096 * 64 * 4);
  EXPECT_EQ(row["attend"]["bytes"], 3 * 4 * 128 * 2 * 2 * 64 * 4);  // 4 kv_blocks, K and V, 2 heads
  EXPECT_EQ(row["sparse"]["bytes"], row["index"]["bytes"].get<double>() + row["attend"]["bytes"].get<double>());
  EXPECT_EQ(io::read_json(json_)["geometry"]["page_size"], 32);
}

TEST_F(Bench, DecodeReadsCachesInFp8) {
  const nlohmann::json index = decode_row({"--index-dtype", "e4m3"});
  EXPECT_EQ(index["index"]["bytes"], 4096 * 64);
  EXPECT_EQ(index["attend"]["bytes"], 4 * 128 * 2 * 2 * 64 * 4);
  const nlohmann::json keys = decode_row({"--kv-dtype", "e4m3", "--dtype", "bf16"});
  EXPECT_EQ(keys["index"]["bytes"], 4096 * 64 * 2);
  EXPECT_EQ(keys["attend"]["bytes"], 4 * 128 * 2 * 2 * 64);
  const nlohmann::json geometry = io::read_json(json_)["geometry"];
  EXPECT_EQ(geometry["kv_dtype"], "e4m3");
  EXPECT_EQ(geometry["index_dtype"], "bf16");
  expect_refusal(msa({"bench", "decode", "--index-dtype", "int8"}), "--index-dtype");
}

TEST_F(Bench, DecodeRoundsIndexQueriesAsItIsTold) {
  EXPECT_EQ(decode_row({"--index-dtype", "e4m3"})["index"]["bytes"], 4096 * 64);
  EXPECT_EQ(io::read_json(json_)["geometry"]["index_q_rounding"], "scaled");
  for (const char* rounding : {"cast", "exact"}) {
    decode_row({"--index-dtype", "e4m3", "--index-q-rounding", rounding});  // which checks its results
    EXPECT_EQ(io::read_json(json_)["geometry"]["index_q_rounding"], rounding);
  }
  expect_refusal(msa({"bench", "decode", "--index-q-rounding", "cast"}),
                 "--index-q-rounding cast: expected --index-dtype e4m3, got none");
  expect_refusal(msa({"bench", "decode", "--index-q-rounding", "none"}), "--index-q-rounding");
}

TEST_F(Bench, DecodeOfMixedLengthsReadsLess) {
  const auto keys = [&](const char* lengths) {
    const std::vector<std::string> options = {"--batch", "8", "--queries", "2", "--lengths", lengths};
    return decode_row(options)["dense"]["bytes"].get<double>() / (2 * 2 * 64 * 4);
  };
  EXPECT_EQ(keys("same"), 8 * 4096);
  EXPECT_LT(keys("mixed"), 8 * 4096);
  EXPECT_GT(keys("mixed"), 8 * 1024);
}

TEST_F(Bench, DecodeOnCudaNeedsAGpu) {
  const MsaRun run = msa({"bench", "decode", "--backend", "cuda", "--contexts", "4K", "--repeats", "2", "--queries",
                          "3", "--json", json_});
  if (std::string(openmsa_cuda_device()).find(" SMs") == std::string::npos) return expect_refusal(run, "CUDA backend");
  ASSERT_EQ(run.status, 0) << run.err;
  const nlohmann::json bench = io::read_json(json_);
  EXPECT_EQ(bench["geometry"]["num_heads_q"], 64);
  EXPECT_EQ(bench["geometry"]["dtype"], "bf16");
  EXPECT_GT(bench["read_gb_per_s"], 0);
  const nlohmann::json& row = bench["results"][0];
  EXPECT_FALSE(row.contains("dense"));
  EXPECT_GT(row["dense_bound"]["ms"], 0);
  for (const char* part : {"sparse", "index", "attend"}) EXPECT_GT(row[part]["share_of_read"], 0) << part;
}

TEST_F(Bench, PrefillMeasuresEveryStage) {
  const std::vector<std::string> layer = {"bench",      "prefill", "--num-heads-q", "4", "--num-heads-kv", "2",
                                          "--head-dim", "64",      "--topk",        "2", "--repeats",      "1",
                                          "--json",     json_};
  const auto stages = [&](std::vector<std::string> options) {
    options.insert(options.begin(), layer.begin(), layer.end());
    const MsaRun run = msa(options);
    EXPECT_EQ(run.status, 0) << run.err;
    std::vector<std::string> names;
    const nlohmann::json bench = io::read_json(json_);
    for (const nlohmann::json& row : bench["results"]) {
      EXPECT_GT(row["median_ms"], 0);
      const bool keeps_all = row["tokens"] == "100" && row["stage"] == "select";
      EXPECT_EQ(row["share_of_sgemm"] > 0, !keeps_all);
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

TEST_F(Bench, TrainMeasuresEveryPartOfTheStep) {
  const MsaRun run = msa(small_train({}));
  ASSERT_EQ(run.status, 0) << run.err;
  const nlohmann::json results = io::read_json(json_)["results"];
  ASSERT_EQ(results.size(), 3u);
  for (const nlohmann::json& row : results) {
    SCOPED_TRACE(row["step"]);
    double parts = row["rest"]["median_ms"];
    for (const char* part : {"products", "attention_forward", "attention_backward"}) {
      EXPECT_GT(row[part]["min_ms"], 0) << part;
      parts += row[part]["median_ms"].get<double>();
    }
    EXPECT_EQ(row["kl_loss"]["median_ms"] > 0, row["step"] != "dense");
    EXPECT_GT(row["share_of_rest"], 0);
    EXPECT_LT(row["share_of_rest"], 1);
    const double total = row["total"]["median_ms"];  // of one step
    EXPECT_NEAR(parts + row["kl_loss"]["median_ms"].get<double>(), total, 1e-6 * total);
  }
}

TEST_F(Bench, TrainChecksItsStepsWithMadeUpSelections) {
  for (const char* selection : {"random", "clustered"}) {
    const MsaRun run = msa(small_train({"--selection", selection}));
    ASSERT_EQ(run.status, 0) << run.err;
    const nlohmann::json bench = io::read_json(json_);
    EXPECT_EQ(bench["selection"], selection);
    EXPECT_EQ(bench["results"].size(), 3u);
  }
}

TEST_F(Bench, TrainRefusesWhatHasNoTrainingPath) {
  expect_refusal(msa({"bench", "train", "--backend", "cuda"}), "--backend cuda");
  expect_refusal(msa({"bench", "train", "--dtype", "bf16"}), "--dtype bf16");
  expect_refusal(msa({"bench", "train", "--selection", "best"}), "--selection");
}

TEST_F(Bench, TrainNeedsASparseLayer) { expect_refusal(msa({"bench", "train", "--layers", "1"}), "--dense-layers"); }

TEST_F(Bench, PrefillCountsCausalOperations) {
  const MsaRun run = msa({"bench", "prefill", "--num-heads-q", "4", "--num-heads-kv", "2", "--head-dim", "64",
                          "--index-dim", "64", "--topk", "1", "--tokens", "200", "--repeats", "1", "--json", json_});
  ASSERT_EQ(run.status, 0) << run.err;
  const nlohmann::json results = io::read_json(json_)["results"];
  EXPECT_EQ(results[0]["operations"], 2 * 2 * 64 * (200 * 201 / 2 - 128 * 129 / 2)) << "of queries with two kv_blocks";
  EXPECT_EQ(results[1]["operations"], 4 * 4 * 64 * (128 * 129 / 2 + 72 * 128));
  EXPECT_EQ(results[3]["operations"], 4 * 4 * 64 * (200 * 201 / 2));
}

/// A query with no more kv_blocks than it may keep keeps them all: nothing is scored, and there is no rate.
TEST_F(Bench, PrefillWithNothingToScoreHasNoRateOfSelection) {
  const MsaRun run = msa({"bench", "prefill", "--num-heads-q", "4", "--num-heads-kv", "2", "--head-dim", "64",
                          "--index-dim", "64", "--topk", "4", "--tokens", "512", "--repeats", "1", "--json", json_});
  ASSERT_EQ(run.status, 0) << run.err;
  const nlohmann::json results = io::read_json(json_)["results"];
  EXPECT_EQ(results[0]["operations"], 0);
  EXPECT_EQ(results[2]["operations"], results[1]["operations"]);
  const std::string row = run.out.substr(run.out.find("select "));
  EXPECT_THAT(row.substr(0, row.find('\n')), testing::ContainsRegex(" - .* -$"));
}

}  // namespace
}  // namespace openmsa::test
