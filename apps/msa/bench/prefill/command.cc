// msa bench prefill: the stages of the layer over whole prompts, chunks after a prefix, and ragged batches.
#include "msa/bench/command.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "io/dtype.h"
#include "io/json_file.h"
#include "lm/checkpoint/memory.h"
#include "msa/bench/host_rates.h"
#include "msa/bench/options.h"
#include "msa/bench/prefill/check.h"
#include "msa/bench/selection.h"
#include "msa/device/timing.h"
#include "msa/machine.h"
#include "msa/number.h"
#include "msa/outputs.h"
#include "msa/progress.h"

namespace openmsa::cli {
namespace {

using nlohmann::ordered_json;

struct PrefillOptions : BenchOptions {
  Config config = m3_geometry();
  std::vector<std::int64_t> tokens = {8192};
  std::vector<std::int64_t> lengths;
  std::int64_t queries = 0;
  std::int64_t prefix = 0;
  std::string selection = "index";
  double peak_tflops = 0;
  double sgemm_tflops = 0;  // measured, for the cpu backend
};

struct Stage {
  const char* name;
  openmsa_op op;
  Work work;
};

struct Figures {
  std::string problem;
  const char* stage;
  Work work;
  Timing timing;

  double tflops() const { return work.operations / timing.median() * 1e-9; }
  double gb_per_s() const { return work.bytes / timing.median() * 1e-6; }
};

/// One list of sequences per line of the table.
std::vector<std::vector<PrefillSequence>> problems(const PrefillOptions& options) {
  if (options.queries > 0) return {{{options.queries, options.prefix + options.queries}}};
  if (!options.lengths.empty()) {
    std::vector<PrefillSequence> batch;
    for (std::int64_t length : options.lengths) batch.push_back({length, length});
    return {batch};
  }
  std::vector<std::vector<PrefillSequence>> result;
  for (std::int64_t tokens : options.tokens) result.push_back({{tokens, tokens}});
  return result;
}

std::string describe(const std::vector<PrefillSequence>& sequences) {
  if (sequences.size() > 1) return std::to_string(sequences.size()) + " prompts";
  const auto& [queries, keys] = sequences.front();
  return queries == keys ? std::to_string(keys) : std::to_string(queries) + "+" + std::to_string(keys - queries);
}

/// The stages in the order in which they are checked: attend works on the selection just made.
std::vector<Stage> stages(const PrefillOptions& options, const Config& config,
                          const std::vector<PrefillSequence>& sequences) {
  const Work select = select_work(config, sequences), attend = attend_work(config, sequences);
  std::vector<Stage> result;
  if (options.selection == "index") result.push_back({"select", OPENMSA_OP_SELECT_BLOCKS, select});
  result.push_back({"attend", OPENMSA_OP_SPARSE_ATTENTION, attend});
  if (options.selection == "index") result.push_back({"whole", OPENMSA_OP_MSA_ATTENTION, select + attend});
  if (!options.is_cuda()) {
    result.push_back({"dense", OPENMSA_OP_DENSE_ATTENTION, dense_work(config, sequences)});
  }
  return result;
}

void check_stage(const PrefillProblem& problem, openmsa_op op) {
  const bool selects = op == OPENMSA_OP_SELECT_BLOCKS || op == OPENMSA_OP_MSA_ATTENTION;
  if (selects) check_prefill_selection(problem);
  if (op != OPENMSA_OP_SELECT_BLOCKS) check_prefill_output(problem, op == OPENMSA_OP_DENSE_ATTENTION);
}

/// The first run is checked and not kept; where runs are short, nor is a second one.
Timing measure(const PrefillProblem& problem, const Plan& plan, openmsa_op op, int repeats) {
  const Tensors tensors = problem.tensors(op);
  Device& device = problem.device();
  const DeviceBuffer workspace(device, plan.workspace_bytes(op));
  const auto run = [&] { return device.time([&] { plan.run(op, tensors, workspace.workspace()); }); };
  constexpr double kShort = 1000;
  const double first = run();
  check_stage(problem, op);
  if (first < kShort) run();
  Timing timing;
  for (int i = 0; i < repeats; ++i) timing.keep(run());
  return timing;
}

void print_header(const PrefillOptions& options) {
  const Config& c = options.config;
  std::printf(
      "Prefill of one layer on %s, ms (median, min..max); %d query and %d KV heads of %d, %d of %d-token "
      "kv_blocks, index dimension %d, %s, %s selection\n",
      options.backend.c_str(), c.num_heads_q, c.num_heads_kv, c.head_dim, c.topk, c.block_size, c.index_dim,
      options.dtype.c_str(), options.selection.c_str());
  if (!options.is_cuda()) {
    std::printf("%s; OpenBLAS sgemm on the same %d threads: %.3f TFLOP/s\n", processor_line(options.dtype).c_str(),
                options.num_threads(), options.sgemm_tflops);
  }
  std::printf("%16s %8s %30s %9s %8s%s%s\n", "tokens", "stage", "ms", "TFLOP/s", "GB/s",
              options.sgemm_tflops > 0 ? "  of sgemm" : "", options.peak_tflops > 0 ? "   of peak" : "");
}

std::string rounded(double value, int digits) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

void print(const PrefillOptions& options, const Figures& row) {
  const bool computes = row.work.operations > 0;  // else there is no rate
  std::printf("%16s %8s %10.3f %9.3f..%-9.3f ", row.problem.c_str(), row.stage, row.timing.median(), row.timing.min(),
              row.timing.max());
  std::printf("%9s %8.1f", computes ? rounded(row.tflops(), 2).c_str() : "-", row.gb_per_s());
  for (const double rate : {options.sgemm_tflops, options.peak_tflops}) {
    if (rate > 0) std::printf("   %7s", computes ? (rounded(100 * row.tflops() / rate, 1) + " %").c_str() : "-");
  }
  std::printf("\n");
}

/// The table; after the stages of a problem, how many times as fast as its dense attention the sparse path is.
void print(const PrefillOptions& options, const std::vector<Figures>& figures) {
  print_header(options);
  for (std::size_t i = 0; i < figures.size(); ++i) {
    print(options, figures[i]);
    if (std::string(figures[i].stage) != "dense") continue;
    const Figures& sparse = figures[i - 1];
    std::printf("%16s %s: %.2f times as fast as dense\n", "", sparse.stage,
                figures[i].timing.median() / sparse.timing.median());
  }
}

ordered_json to_json(const PrefillOptions& options, const std::vector<Figures>& figures) {
  ordered_json results = ordered_json::array();
  for (const Figures& row : figures) {
    results.push_back({{"tokens", row.problem},
                       {"stage", row.stage},
                       {"median_ms", row.timing.median()},
                       {"min_ms", row.timing.min()},
                       {"max_ms", row.timing.max()},
                       {"operations", row.work.operations},
                       {"bytes", row.work.bytes},
                       {"tflops", row.tflops()},
                       {"gb_per_s", row.gb_per_s()}});
    if (options.sgemm_tflops > 0) results.back()["share_of_sgemm"] = row.tflops() / options.sgemm_tflops;
    if (options.peak_tflops > 0) results.back()["share_of_peak"] = row.tflops() / options.peak_tflops;
  }
  ordered_json geometry = geometry_to_json(options.config);
  geometry["dtype"] = options.dtype;
  ordered_json facts = {{"geometry", geometry},       {"backend", options.backend}, {"selection", options.selection},
                        {"repeats", options.repeats}, {"results", results},         {"machine", machine_facts()}};
  if (!options.is_cuda()) {
    facts["threads"] = options.num_threads();
    facts["sgemm_tflops"] = options.sgemm_tflops;
  }
  return facts;
}

/// Before anything is measured; on a GPU its own memory counts, and CUDA says what is lacking.
void require_memory(const PrefillOptions& options, const std::vector<std::vector<PrefillSequence>>& all) {
  if (options.is_cuda()) return;
  for (const auto& sequences : all) {
    const Config config = fit_to(options.config, sequences);
    const Plan plan(config);
    std::size_t workspace = 0;
    for (const Stage& stage : stages(options, config, sequences)) {
      workspace = std::max(workspace, plan.workspace_bytes(stage.op));
    }
    lm::require_memory("a prefill of " + describe(sequences) + (sequences.size() > 1 ? "" : " tokens"),
                       PrefillProblem::bytes(config, sequences) + workspace);
  }
}

void run(PrefillOptions options) {
  check_outputs({{"--json", options.json}});
  options.config.backend = options.backend_id();
  options.config.num_threads = options.threads;
  options.config.dtype = io::dtype_of_name(options.dtype);
  const auto all = problems(options);
  require_memory(options, all);
  if (!options.is_cuda()) options.sgemm_tflops = sgemm_tflops(options.num_threads());
  std::vector<Figures> figures;
  std::unique_ptr<Device> device;
  Progress progress("bench prefill", std::ssize(all));
  for (const auto& sequences : all) {
    const Config config = fit_to(options.config, sequences);
    const Plan plan(config);
    if (!device) device = make_device(config.backend);
    PrefillProblem problem(*device, config, sequences, options.seed);
    if (options.selection != "index") {
      problem.set_selection(made_up_selection(config, sequences, options.selection == "clustered", options.seed));
    }
    const std::string name = describe(sequences);
    for (const Stage& stage : stages(options, config, sequences)) {
      progress.update(&sequences - all.data(), name + " " + stage.name);
      figures.push_back({name, stage.name, stage.work, measure(problem, plan, stage.op, options.repeats)});
    }
  }
  progress.finish();
  print(options, figures);
  if (!options.json.empty()) io::write_json(options.json, to_json(options, figures));
}

void add_problem(CLI::App& command, PrefillOptions& options) {
  const CLI::Validator positive = between(std::int64_t{1}, std::int64_t{1} << 30);
  auto* tokens = command.add_option("--tokens", options.tokens, "Prompts, for example 8192,32768 or 8K,1M [8K]");
  auto* lengths = command.add_option("--lengths", options.lengths, "One ragged batch of prompts of these lengths");
  auto* queries = command.add_option("--queries", options.queries, "One chunk of so many queries ...");
  auto* prefix = command.add_option("--prefix", options.prefix, "... behind so many keys");
  for (CLI::Option* option : {tokens, lengths}) option->delimiter(',');
  for (CLI::Option* option : {tokens, lengths, queries, prefix}) {
    option->transform(CLI::AsSizeValue(false));
    if (option != prefix) option->check(positive);
  }
  prefix->check(between(std::int64_t{0}, std::int64_t{1} << 30))->needs(queries);
  tokens->excludes(lengths)->excludes(queries);
  lengths->excludes(queries);
}

}  // namespace

void add_bench_prefill(CLI::App& bench) {
  auto options = std::make_shared<PrefillOptions>();
  options->dtype = "bf16";
  CLI::App* command = bench.add_subcommand("prefill", "Time, TFLOP/s and GB/s of the stages over whole prompts");
  command->footer(
      "Inputs are random. A few queries of every result are checked against the reference backend before it is timed.\n"
      "GPU times are taken between events, with a cold L2 cache. Operations count causal pairs, a multiply-add as "
      "two,\n"
      "and in select only queries with more kv_blocks than they keep;\n"
      "bytes count every input and result once.\n"
      "Examples:\n"
      "  msa bench prefill --backend cuda --tokens 8K,32K,128K,512K,1M --peak-tflops 793\n"
      "  msa bench prefill --backend cuda --tokens 128K --selection clustered\n"
      "  msa bench prefill --backend cuda --queries 8K --prefix 512K");
  for (const GeometryOption& number : kGeometry) {
    command->add_option(number.option, options->config.*number.member, number.text)->capture_default_str();
  }
  options->add_threads(*command);
  add_problem(*command, *options);
  options->add_backend(*command);
  options->add_dtype(*command, "fp32, bf16 or fp16");
  command->add_option("--selection", options->selection, "index (the whole path), or random or clustered: attend alone")
      ->check(CLI::IsMember({"index", "random", "clustered"}))
      ->capture_default_str();
  options->add_repeats(*command);
  command->add_option("--peak-tflops", options->peak_tflops, "Adds each stage's share of this rate")
      ->check(between(1e-3, 1e9));
  options->add_seed(*command);
  options->add_json(*command);
  command->callback([options] { run(*options); });
}

}  // namespace openmsa::cli
