#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>

#include "io/json_file.h"
#include "msa/msa.h"

namespace openmsa::test {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::Not;

class Report : public MsaTest {
 protected:
  void SetUp() override {
    write_log("msa", {{"kl_loss", 0.5}, {"block_recall", 0.25}, {"score_recall", 0.5}},
              {{"kl_loss", 0.1}, {"block_recall", 0.75}, {"score_recall", 0.875}});
    write_log("dense", json::object(), json::object());
    write_json("eval-msa.json", {{"bits_per_byte", 2.02}});
    write_json("eval-dense.json", {{"bits_per_byte", 2.0}});
    write_json("selection.json",
               {{"block_size", 32}, {"topk", 2}, {"seqlen", 64}, {"text", "ab"}, {"layers", json::array()}});
    const json timing = {{"median_ms", 0.5}, {"gb_per_s", 1.0}};
    const json result = {{"sparse", timing}, {"index", timing}, {"attend", timing}, {"dense", timing}};
    json first = result, last = result;
    first["context"] = 2048;
    last["context"] = 131072;
    write_json("bench-decode.json", {{"geometry", json::object()}, {"results", {first, last}}});
    write_json("generate.json", {{"prompt", "int main"}, {"continuation", "</script><script>alert(1)</script>"}});
    write_json("info.json", {{"version", "0.1.0"}});
    std::ofstream(directory_ / "commands.txt") << "msa train\n";
  }

  void write_json(const std::string& name, const json& value) const { io::write_json(directory_ / name, value); }

  void write_log(const std::string& name, json first, json last) const {
    std::filesystem::create_directory(directory_.path() / name);
    std::ofstream log(directory_.path() / name / "log.jsonl");
    log << json({{"event", "start"}, {"parameters", 2000000}}) << '\n';
    first.update({{"event", "step"}, {"step", 1}, {"tokens", 10}, {"loss", 5.5}});
    last.update({{"event", "step"}, {"step", 2}, {"tokens", 20}, {"loss", 5.0}});
    log << first << '\n' << last << '\n' << json({{"event", "end"}, {"seconds", 12.0}}) << '\n';
  }

  MsaRun report() const {
    return msa({"report", "--run", directory_.path().string(), "--output", directory_ / "report.html", "--summary"});
  }
};

TEST_F(Report, PageIsSelfContained) {
  const MsaRun run = report();
  EXPECT_EQ(run.status, 0) << run.err;
  const std::string page = io::read_text(directory_ / "report.html");
  EXPECT_THAT(page, HasSubstr("Chart.js"));
  EXPECT_THAT(page, Not(HasSubstr("{{")));
  EXPECT_THAT(page, Not(HasSubstr(" src=")));
  EXPECT_THAT(page, Not(HasSubstr("<link")));
}

TEST_F(Report, TextOfTheModelCannotLeaveItsElement) {
  report();
  const std::string page = io::read_text(directory_ / "report.html");
  EXPECT_THAT(page, Not(HasSubstr("<script>alert")));
  EXPECT_THAT(page, HasSubstr("\\u003cscript>alert(1)"));
}

TEST_F(Report, SummaryHasTheMainFigures) {
  const std::string table = report().out;
  for (const char* figure : {"2.0200", "2.0000", "+1.00 %", "128K", "50.0 % -> 87.5 %", "25.0 % -> 75.0 %"}) {
    EXPECT_THAT(table, HasSubstr(figure));
  }
}

TEST_F(Report, IncompleteRunsAreRefused) {
  std::ofstream(directory_.path() / "msa" / "log.jsonl") << R"({"event":"start","parameters":1})" << '\n';
  expect_refusal(report(), "not complete");
  SetUp();
  write_json("eval-msa.json", json::object());
  expect_refusal(report(), "bits_per_byte");
  std::filesystem::remove(directory_.path() / "selection.json");
  expect_refusal(report(), "selection.json");
  EXPECT_FALSE(std::filesystem::exists(directory_ / "report.html"));
}

/// Copying it would exhaust the stack.
TEST_F(Report, DeepLogsAreRefused) {
  constexpr std::size_t kDepth = 1 << 20;
  const std::string deep = std::string(kDepth, '[') + std::string(kDepth, ']');
  std::ofstream(directory_.path() / "msa" / "log.jsonl", std::ios::app) << R"({"event":"end","x":)" + deep + "}\n";
  expect_refusal(report(), "log.jsonl: nested too deeply");
}

}  // namespace
}  // namespace openmsa::test
