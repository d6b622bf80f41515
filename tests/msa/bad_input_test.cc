// Whatever is wrong: exit status 2 and one line on stderr, no output file; 1 where the input is not to blame.
#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>

#include "msa/msa.h"

namespace openmsa::test {
namespace {

using testing::HasSubstr;

struct BadCommandLine {
  const char* name;
  std::vector<std::string> arguments;
  const char* message;
};

std::ostream& operator<<(std::ostream& out, const BadCommandLine& line) { return out << line.name; }

class CommandLine : public MsaTest, public testing::WithParamInterface<BadCommandLine> {};

TEST_P(CommandLine, IsRefused) { expect_refusal(msa(GetParam().arguments), GetParam().message); }

INSTANTIATE_TEST_SUITE_P(
    Kinds, CommandLine,
    testing::Values(
        BadCommandLine{"None", {}, "subcommand"}, BadCommandLine{"Unknown", {"attention"}, "no command 'attention'"},
        BadCommandLine{"NoInput", {"attend", "--output", "x"}, "--input"},
        BadCommandLine{"NoOutput", {"attend", "--input", "x"}, "--output"},
        BadCommandLine{"UnknownOption", {"info", "--verbose"}, "--verbose"},
        BadCommandLine{"NoNumber", {"attend", "--input", "x", "--output", "y", "--topk", "four"}, "--topk"},
        BadCommandLine{"Backend", {"attend", "--input", "x", "--output", "y", "--backend", "gpu"}, "gpu"},
        BadCommandLine{"Threads", {"attend", "--input", "x", "--output", "y", "--threads", "-1"}, "--threads"},
        BadCommandLine{"DenseTopk", {"attend", "--input", "x", "--output", "y", "--dense", "--topk", "4"}, "--dense"},
        BadCommandLine{"VerifyBackend", {"verify", "--backend", "reference"}, "--backend"},
        BadCommandLine{"VerifyTolerance", {"verify", "--tolerance", "-1"}, "from 0 to 1e+09, got -1"},
        BadCommandLine{"NoBench", {"bench"}, "subcommand"},
        BadCommandLine{"BenchDtype", {"bench", "decode", "--dtype", "int8"}, "int8"},
        BadCommandLine{"BenchContext", {"bench", "decode", "--contexts", "0"}, "--contexts"},
        BadCommandLine{"BenchHeads", {"bench", "decode", "--num-heads-q", "3", "--contexts", "64"}, "num_heads_q"},
        BadCommandLine{"BenchModel", {"bench", "decode", "--model", "/nowhere"}, "/nowhere"},
        BadCommandLine{"BenchBackend", {"bench", "decode", "--backend", "reference"}, "--backend"},
        BadCommandLine{"BenchPageSize", {"bench", "decode", "--page-size", "48", "--contexts", "64"}, "page_size"},
        BadCommandLine{"BenchLengths", {"bench", "decode", "--lengths", "random"}, "--lengths"},
        BadCommandLine{
            "BenchMixed", {"bench", "decode", "--lengths", "mixed", "--contexts", "4K,512"}, "at least 1024"},
        BadCommandLine{"BenchNoQueries", {"bench", "decode", "--queries", "0"}, "--queries"},
        BadCommandLine{"BenchQueries", {"bench", "decode", "--queries", "17"}, "--queries"},
        BadCommandLine{"BenchShort", {"bench", "decode", "--queries", "8", "--contexts", "7"}, "at least 8 keys"},
        BadCommandLine{"BenchOneAgrees", {"bench", "decode", "--agreement", "0.5"}, "--queries of at least 2"},
        BadCommandLine{"BenchAgreement", {"bench", "decode", "--queries", "2", "--agreement", "1.5"}, "--agreement"},
        BadCommandLine{"PrefillPrefix", {"bench", "prefill", "--prefix", "3"}, "--queries"},
        BadCommandLine{"PrefillTwice", {"bench", "prefill", "--tokens", "5", "--queries", "3"}, "--queries"},
        BadCommandLine{"PrefillPeak", {"bench", "prefill", "--peak-tflops", "0"}, "from 0.001 to 1e+09, got 0"},
        BadCommandLine{"PrefillHeads", {"bench", "prefill", "--num-heads-q", "3"}, "num_heads_q"},
        BadCommandLine{"TrainNan", {"train", "--output", "x", "--lr", "nan"}, "--lr"},
        BadCommandLine{"TrainInfinity", {"train", "--output", "x", "--lr", "inf"}, "from 0 to 1e+09, got inf"},
        BadCommandLine{"TrainSeed", {"train", "--output", "x", "--seed", "-1"}, "--seed: expected a number from 0 on"},
        BadCommandLine{"Octal", {"eval", "--model", "x", "--batch", "0005000"}, "from 1 to 4096, got 5000"},
        BadCommandLine{"TemperatureNan",
                       {"generate", "--model", "x", "--prompt", "y", "--temperature", "NaN"},
                       "--temperature: expected a number, got NaN"},
        BadCommandLine{"ToleranceNan", {"verify", "--tolerance", "nan"}, "--tolerance"},
        BadCommandLine{"AgreementNan", {"bench", "decode", "--agreement", "nan"}, "--agreement"},
        BadCommandLine{"MaxBytes", {"eval", "--model", "x", "--max-bytes", "-1"}, "from 1 to 1099511627776, got -1"},
        BadCommandLine{"OneFileTwice",
                       {"attend", "--input", "x", "--output", "r", "--json", "./r"},
                       "--output, --json: both name ./r"},
        BadCommandLine{"ReportNothing", {"report", "--run", "/nowhere"}, "--output"},
        BadCommandLine{"ReportRun", {"report", "--run", "/nowhere", "--summary"}, "/nowhere"}),
    [](const auto& info) { return info.param.name; });

struct BadLayer {
  const char* name;
  std::function<void(TensorMap&)> spoil;
  std::vector<std::string> options;
  const char* message;
};

std::ostream& operator<<(std::ostream& out, const BadLayer& layer) { return out << layer.name; }

class LayerFile : public MsaTest, public testing::WithParamInterface<BadLayer> {};

/// A layer that is right, with paged keys where the case names a cache.
Layer good_layer(bool is_paged) {
  LayerShape shape;
  shape.seqlens_q = {40, 3};
  shape.seqlens_k = {40, 90};
  shape.page_size = is_paged ? 16 : 0;
  Layer layer = make_layer(shape);
  for (const char* name : {"k", "v", "index_k", "cu_seqlens_k"}) {
    if (is_paged) layer.tensors.erase(name);
  }
  if (!is_paged) layer.tensors.erase("seqlens_k");
  return layer;
}

std::vector<std::string> names_of(const Layer& layer) {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : layer.tensors) names.push_back(name);
  return names;
}

TEST_P(LayerFile, IsRefused) {
  Layer layer = good_layer(std::string(GetParam().name).starts_with("Paged"));
  GetParam().spoil(layer.tensors);
  write(layer, names_of(layer));
  std::vector<std::string> arguments = {"attend",           "--input", directory_ / "in",  "--output",
                                        directory_ / "out", "--json",  directory_ / "json"};
  arguments.insert(arguments.end(), GetParam().options.begin(), GetParam().options.end());
  expect_refusal(msa(arguments), GetParam().message);
  EXPECT_EQ(directory_.num_entries(), 1u) << "only the input";
}

void nothing(TensorMap&) {}
std::function<void(TensorMap&)> without(const std::string& name) {
  return [name](TensorMap& tensors) { tensors.erase(name); };
}
std::function<void(TensorMap&)> replace(const std::string& name, const Buffer& buffer) {
  return [name, buffer](TensorMap& tensors) { tensors[name] = buffer; };
}
Buffer zeros(openmsa_dtype dtype, const Shape& shape) {
  Buffer buffer(dtype, shape);
  buffer.fill(0);
  return buffer;
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, LayerFile,
    testing::Values(
        BadLayer{"NoQ", without("q"), {}, "'q'"}, BadLayer{"NoK", without("k"), {}, "'k'"},
        BadLayer{"NoV", without("v"), {}, "v: required"}, BadLayer{"NoIndexQ", without("index_q"), {}, "'index_q'"},
        BadLayer{"NoIndexK", without("index_k"), {}, "'index_k'"},
        BadLayer{"NoCuSeqlensK", without("cu_seqlens_k"), {}, "cu_seqlens"},
        BadLayer{"RankOfQ", replace("q", zeros(OPENMSA_FLOAT32, {43, 256})), {}, "q: expected 3 dimensions, got 2"},
        BadLayer{"RankOfV", replace("v", zeros(OPENMSA_FLOAT32, {130, 128})), {}, "v: expected rank 3, got 2"},
        BadLayer{"TypeOfK", replace("k", zeros(OPENMSA_BFLOAT16, {130, 2, 64})), {}, "k: expected dtype fp32"},
        BadLayer{"TypeOfQ", replace("q", zeros(OPENMSA_INT32, {43, 4, 64})), {}, "dtype"},
        BadLayer{"Float64OnCpu", replace("q", zeros(OPENMSA_FLOAT64, {43, 4, 64})), {}, "fp64"},
        BadLayer{"HeadRatio", replace("q", zeros(OPENMSA_FLOAT32, {43, 3, 64})), {}, "num_heads_q"},
        BadLayer{"LengthOfV", replace("v", zeros(OPENMSA_FLOAT32, {129, 2, 64})), {}, "total_k"},
        BadLayer{"DecreasingSums", replace("cu_seqlens_q", int_buffer({0, 44, 43})), {}, "cu_seqlens_q"},
        BadLayer{"OverlongSums", replace("cu_seqlens_k", int_buffer({0, 40, 131})), {}, "cu_seqlens_k"},
        BadLayer{"EmptySums", replace("cu_seqlens_q", int_buffer({}, {0})), {}, "cu_seqlens_q"},
        BadLayer{"TopkZero", nothing, {"--topk", "0"}, "topk: expected at least 1"},
        BadLayer{"TopkHuge", nothing, {"--topk", "65"}, "topk"},
        BadLayer{"BlockSize", nothing, {"--block-size", "48"}, "block_size"},
        BadLayer{"Scale", nothing, {"--softmax-scale", "inf"}, "softmax_scale"},
        BadLayer{"NoGradient", without("d_o"), {"--backward"}, "'d_o'"},
        BadLayer{"ShapeOfGradient", replace("d_o", zeros(OPENMSA_FLOAT32, {42, 4, 64})), {"--backward"}, "d_o"},
        BadLayer{"HalfAnIndexBranch", without("index_k"), {"--dense", "--backward"}, "'index_k'"},
        BadLayer{"DenseWithIndices", replace("topk_indices", zeros(OPENMSA_INT32, {2, 43, 1})), {"--dense"}, "--dense"},
        BadLayer{"ForcedWithIndices",
                 replace("topk_indices", zeros(OPENMSA_INT32, {2, 43, 1})),
                 {"--num-local-blocks", "2"},
                 "nothing is selected"},
        BadLayer{"TopkWithIndices", replace("topk_indices", zeros(OPENMSA_INT32, {2, 43, 1})), {"--topk", "2"}, "--topk"},
        BadLayer{"IndexOutOfRange",
                 [](TensorMap& tensors) {
                   tensors["topk_indices"] = zeros(OPENMSA_INT32, {2, 43, 1});
                   tensors["topk_indices"].set({1, 3, 0}, 7);
                 },
                 {},
                 "topk_indices"},
        BadLayer{"RepeatedIndex", replace("topk_indices", zeros(OPENMSA_INT32, {2, 43, 2})), {}, "twice"},
        BadLayer{"PagedAndContiguous", replace("k", zeros(OPENMSA_FLOAT32, {130, 2, 64})), {}, "got both"},
        BadLayer{"PagedBackward", nothing, {"--backward"}, "--backward"},
        BadLayer{"PagedNoTable", without("block_table"), {}, "'block_table'"},
        BadLayer{"PagedNoLengths", without("seqlens_k"), {}, "seqlens_k"},
        BadLayer{"PagedNumber", [](TensorMap& tensors) { tensors["block_table"].set({0, 0}, 99); }, {}, "block_table"},
        BadLayer{"PagedLengths", replace("seqlens_k", int_buffer({40, 5000})), {}, "seqlens_k"},
        BadLayer{"PagedSize", nothing, {"--block-size", "8"}, "page_size"},
        BadLayer{"PagedEmptyPages", replace("k_cache", zeros(OPENMSA_FLOAT32, {9, 0, 2, 64})), {}, "k_cache"}),
    [](const auto& info) { return info.param.name; });

using BadInput = MsaTest;

TEST_F(BadInput, NoSafetensorsFile) {
  std::ofstream(directory_ / "in") << "this is\nno safetensors file\n";
  for (const std::string& input : {directory_ / "in", directory_ / "absent", directory_.path().string()}) {
    expect_refusal(msa({"attend", "--input", input, "--output", directory_ / "out"}), input);
  }
  EXPECT_FALSE(std::filesystem::exists(directory_ / "out"));
}

TEST_F(BadInput, MessagesStayOneLineWhateverTheFileSays) {
  const std::string header = R"({"a\n\u001bb":7})";
  const std::uint64_t length = header.size();
  std::ofstream file(directory_ / "in", std::ios::binary);
  file.write(reinterpret_cast<const char*>(&length), 8);
  file << header;
  file.close();
  expect_refusal(msa({"attend", "--input", directory_ / "in", "--output", directory_ / "out"}), "a  b");
}

/// What is quoted in the middle may be as long as the file.
TEST_F(BadInput, LongMessagesAreCut) {
  const std::string header = "{\"" + std::string(100000, 'n') + "\":7}";
  const std::uint64_t length = header.size();
  std::ofstream file(directory_ / "in", std::ios::binary);
  file.write(reinterpret_cast<const char*>(&length), 8);
  file << header;
  file.close();
  const MsaRun run = msa({"attend", "--input", directory_ / "in", "--output", directory_ / "out"});
  expect_refusal(run, directory_ / "in: tensor 'nnn");
  EXPECT_THAT(run.err, HasSubstr("nnn': expected an object, got number"));
  EXPECT_LT(run.err.size(), 2000u);
}

TEST_F(BadInput, WhatNoMemoryHoldsIsRefusedBeforeItIsMeasured) {
  expect_refusal(msa({"bench", "prefill", "--tokens", "64,512M"}), "a prefill of 536870912 tokens needs");
  expect_refusal(msa({"bench", "decode", "--contexts", "1K,2147483647", "--batch", "64"}), "2147483647 keys needs");
  expect_refusal(msa({"bench", "train", "--hidden", "65536", "--layers", "100"}), "training needs");
  expect_refusal(msa({"train", "--output", directory_ / "m", "--hidden", "65536", "--layers", "100"}),
                 "training needs");
  EXPECT_EQ(directory_.num_entries(), 0u);
}

TEST_F(BadInput, MessagesAreCutWhereTheyQuoteTooMuch) {
  const MsaRun run = msa(
      {"attend", "--input", directory_ / "in", "--output", directory_ / "out", "--backend", std::string(100000, 'x')});
  expect_refusal(run, "--backend");
  EXPECT_LT(run.err.size(), 2000u);
}

/// The options of a command that take a number, as its help lists them.
std::vector<std::string> numeric_options(const std::string& help) {
  std::vector<std::string> options;
  std::istringstream lines(help);
  for (std::string line; std::getline(lines, line);) {
    std::string option, type;
    std::istringstream(line) >> option >> type;
    const bool is_number = type.starts_with("INT") || type.starts_with("UINT") || type.starts_with("FLOAT");
    if (option.starts_with("--") && is_number) options.push_back(option);
  }
  return options;
}

/// A range that goes as far as doubles do has an end of 309 digits.
TEST_F(BadInput, NumbersAreRefusedInShort) {
  const std::vector<std::vector<std::string>> commands = {{"attend"},         {"train"},           {"eval"},
                                                          {"generate"},       {"bench", "decode"}, {"bench", "prefill"},
                                                          {"bench", "train"}, {"verify"}};
  for (std::vector<std::string> command : commands) {
    command.emplace_back("--help");
    const std::vector<std::string> options = numeric_options(msa(command).out);
    EXPECT_GE(options.size(), 2u) << command.front();
    for (const std::string& option : options) {
      command.back() = option;
      for (const char* number : {"-1e308", "1e400"}) {
        std::vector<std::string> arguments = command;
        arguments.emplace_back(number);
        const MsaRun run = msa(arguments);
        expect_refusal(run, "");
        EXPECT_LT(run.err.size(), 120u) << run.err;
      }
    }
  }
}

TEST_F(BadInput, OutputThatCannotBeCreatedIsAFailure) {
  const Layer layer = good_layer(false);
  write(layer, names_of(layer));
  const std::string out = directory_ / "absent/out";
  using Arguments = std::vector<std::string>;
  for (Arguments arguments :
       {Arguments{"eval", "--model", "absent"}, Arguments{"generate", "--prompt", "x", "--model", "absent"},
        Arguments{"bench", "decode", "--model", "absent"}, Arguments{"bench", "prefill", "--num-heads-q", "3"},
        Arguments{"bench", "train", "--layers", "1"}, Arguments{"verify"}}) {
    arguments.insert(arguments.end(), {"--json", out});
    const MsaRun run = msa(arguments);
    expect_refusal(run, out, 1);  // before anything is read or run
    EXPECT_EQ(run.out, "");
  }
  expect_refusal(msa({"attend", "--input", directory_ / "in", "--output", out}), out, 1);
  EXPECT_EQ(directory_.num_entries(), 1u);
}

TEST_F(BadInput, AFailedRunLeavesTheOldOutput) {
  const Layer layer = good_layer(false);
  write(layer, names_of(layer));
  std::ofstream(directory_ / "out") << "old";
  msa({"attend", "--input", directory_ / "in", "--output", directory_ / "out", "--topk", "0"});
  EXPECT_EQ(std::filesystem::file_size(directory_ / "out"), 3u);
}

}  // namespace
}  // namespace openmsa::test
