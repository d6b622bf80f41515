// msa bench decode: attention time per new token as the context grows, sparse beside dense on the same paged caches.
#include "msa/bench/command.h"

#include <algorithm>
#include <iterator>
#include <memory>
#include <numeric>
#include <openmsa/openmsa.hpp>
#include <optional>
#include <string>
#include <vector>

#include "io/dtype.h"
#include "io/error.h"
#include "io/json_file.h"
#include "lm/checkpoint/memory.h"
#include "lm/model/config.h"
#include "msa/bench/decode/check.h"
#include "msa/bench/decode/figures.h"
#include "msa/bench/decode/problem.h"
#include "msa/bench/decode/table.h"
#include "msa/bench/host_rates.h"
#include "msa/bench/options.h"
#include "msa/machine.h"
#include "msa/number.h"
#include "msa/outputs.h"
#include "msa/progress.h"

namespace openmsa::cli {
namespace {

using nlohmann::ordered_json;

/// Options that are absent depend on the backend.
struct DecodeOptions : BenchOptions {
  std::optional<std::int32_t> geometry[std::size(kGeometry)];
  std::string model;
  std::int64_t batch = 1;
  std::int32_t queries = 1;
  std::optional<double> agreement;
  std::string lengths = "same";
  std::optional<std::int32_t> page_size;
  std::optional<std::string> kv_dtype, index_dtype;
  std::string index_q_rounding = "scaled";
  std::vector<std::int64_t> contexts;
};

/// The geometry of a small model, for the CPU.
Config small_geometry() {
  Config config = openmsa::config();
  config.num_heads_q = 8;
  config.num_heads_kv = 2;
  config.head_dim = config.index_dim = 64;
  return config;
}

Config geometry_of_model(const std::string& directory) {
  const lm::ModelConfig model = lm::config_from_json(io::read_json(directory + "/config.json"));
  if (!model.has_sparse_layers()) throw io::InputError(directory + ": expected a model with sparse layers, got none");
  Config config = openmsa::config();
  config.num_heads_q = model.num_heads_q;
  config.num_heads_kv = model.num_heads_kv;
  config.head_dim = model.head_dim;
  config.index_dim = model.index_dim;
  config.block_size = model.block_size;
  config.topk = model.topk;
  return config;
}

Config usual_geometry(bool is_cuda) { return is_cuda ? m3_geometry() : small_geometry(); }

constexpr const char* kRoundings[] = {"scaled", "cast", "exact"};  // by openmsa_index_q_rounding

openmsa_index_q_rounding rounding_of(const DecodeOptions& options) {
  const auto* const found = std::find(std::begin(kRoundings), std::end(kRoundings), options.index_q_rounding);
  const auto rounding = static_cast<openmsa_index_q_rounding>(found - std::begin(kRoundings));
  if (rounding != OPENMSA_INDEX_Q_SCALED && !options.index_dtype) {
    throw io::InputError("--index-q-rounding " + options.index_q_rounding + ": expected --index-dtype e4m3, got none");
  }
  return rounding;
}

/// The configuration of the longest context; fit_to gives that of each.
Config decode_config(const DecodeOptions& options) {
  Config config = options.model.empty() ? usual_geometry(options.is_cuda()) : geometry_of_model(options.model);
  for (std::size_t i = 0; i < std::size(kGeometry); ++i) {
    if (options.geometry[i]) config.*kGeometry[i].member = *options.geometry[i];
  }
  const std::string dtype = !options.dtype.empty() ? options.dtype : options.is_cuda() ? "bf16" : "fp32";
  config.backend = options.backend_id();
  config.dtype = io::dtype_of_name(dtype);
  config.kv_dtype = io::dtype_of_name(options.kv_dtype.value_or(dtype));
  config.index_dtype = io::dtype_of_name(options.index_dtype.value_or(dtype));
  config.index_q_rounding = rounding_of(options);
  config.page_size = options.page_size.value_or(config.block_size);
  config.max_batch = options.batch;
  config.num_threads = options.threads;
  return config;
}

/// One shape per context.
std::vector<DecodeShape> shapes_of(const DecodeOptions& options) {
  constexpr double kUsualAgreement = 0.99;
  if (options.agreement && options.queries == 1) {
    throw io::InputError("--agreement: expected --queries of at least 2, got 1");
  }
  std::vector<std::int64_t> contexts = {2048, 4096, 8192, 16384, 32768, 65536, 131072};
  if (options.is_cuda()) contexts = {32768, 131072, 1048576};
  if (!options.contexts.empty()) contexts = options.contexts;
  const bool has_mixed_lengths = options.lengths == "mixed";
  const std::int64_t least = has_mixed_lengths ? kShortestMixed : options.queries;
  std::vector<DecodeShape> result;
  for (std::int64_t context : contexts) {
    if (context < least) {
      throw io::InputError("--contexts: expected at least " + std::to_string(least) +
                           (has_mixed_lengths ? " keys with --lengths mixed" : " keys, one per query token") +
                           ", got " + std::to_string(context));
    }
    result.push_back({context, options.queries, has_mixed_lengths, options.agreement.value_or(kUsualAgreement)});
  }
  return result;
}

ordered_json to_json(const Config& config, const DecodeOptions& options, const std::vector<DecodeFigures>& figures,
                     const MemoryRates& rates) {
  ordered_json results = ordered_json::array();
  for (const DecodeFigures& row : figures) results.push_back(to_json(row, rates));
  ordered_json geometry = geometry_to_json(config);
  geometry.update({{"page_size", config.page_size},
                   {"batch", config.max_batch},
                   {"queries", options.queries},
                   {"lengths", options.lengths},
                   {"dtype", io::dtype_name(config.dtype)},
                   {"kv_dtype", io::dtype_name(config.kv_dtype)},
                   {"index_dtype", io::dtype_name(config.index_dtype)},
                   {"index_q_rounding", options.index_q_rounding}});
  ordered_json facts = {{"geometry", geometry},       {"backend", options.backend}, {"threads", options.num_threads()},
                        {"repeats", options.repeats}, {"results", results},         {"machine", machine_facts()}};
  if (options.agreement) facts["geometry"]["agreement"] = *options.agreement;
  if (rates.read) facts["read_gb_per_s"] = *rates.read;
  if (rates.copy) facts["copy_gb_per_s"] = *rates.copy;
  return facts;
}

/// Before anything is measured; on a GPU its own memory counts, and CUDA says what is lacking.
void require_memory(const DecodeOptions& options, const Config& config, const std::vector<DecodeShape>& shapes) {
  if (options.is_cuda()) return;
  for (const DecodeShape& shape : shapes) {
    const Plan plan(fit_to(config, shape));
    std::size_t workspace = 0;
    for (openmsa_op op : {OPENMSA_OP_SELECT_BLOCKS, OPENMSA_OP_SPARSE_ATTENTION, OPENMSA_OP_MSA_ATTENTION,
                          OPENMSA_OP_DENSE_ATTENTION}) {
      workspace = std::max(workspace, plan.workspace_bytes(op));
    }
    lm::require_memory("a batch of " + std::to_string(config.max_batch) + " caches of up to " +
                           std::to_string(shape.context) + " keys",
                       DecodeProblem::bytes_on_host(config, shape, options.seed) + workspace);
  }
}

void run(const DecodeOptions& options) {
  check_outputs({{"--json", options.json}});
  const Config config = decode_config(options);
  const std::vector<DecodeShape> shapes = shapes_of(options);
  require_memory(options, config, shapes);
  const auto add = [](std::int64_t sum, const DecodeShape& shape) { return sum + shape.context; };
  const auto shorter = [](const DecodeShape& a, const DecodeShape& b) { return a.context < b.context; };
  const DecodeShape& shortest = *std::min_element(shapes.begin(), shapes.end(), shorter);
  // Time grows with the contexts.
  Progress progress("bench decode",
                    options.repeats * std::accumulate(shapes.begin(), shapes.end(), std::int64_t{0}, add));
  std::unique_ptr<Device> device;
  MemoryRates rates;
  if (!options.is_cuda()) rates.copy = copy_gb_per_s(options.num_threads());
  std::vector<DecodeFigures> figures;
  std::int64_t measured = 0;
  for (const DecodeShape& shape : shapes) {
    const Plan plan(fit_to(config, shape));
    if (!device) {
      device = make_device(config.backend);
      rates.read = device->read_gb_per_s();
    }
    const DecodeProblem problem(*device, config, shape, options.seed);
    check_decode(plan, problem, !options.is_cuda() && &shape == &shortest);  // the reference is slow
    figures.push_back(measure_decode(plan, problem, options.repeats, [&](int repeat) {
      progress.update(measured + shape.context * repeat, std::to_string(shape.context) + " keys");
    }));
    measured += shape.context * options.repeats;
  }
  progress.finish();
  print_table(config, shapes.front(), figures, rates);
  if (!options.json.empty()) io::write_json(options.json, to_json(config, options, figures, rates));
}

/// "[8; cuda: 64]", or "[128]" where both are the same.
std::string usual_text(std::int32_t Config::*member) {
  const std::string on_cpu = std::to_string(usual_geometry(false).*member);
  const std::string on_cuda = std::to_string(usual_geometry(true).*member);
  return "[" + on_cpu + (on_cuda == on_cpu ? "" : "; cuda: " + on_cuda) + "]";
}

void add_geometry(CLI::App& command, DecodeOptions& options) {
  auto* model =
      command.add_option("--model", options.model, "Take the geometry from DIR/config.json")->type_name("DIR");
  for (std::size_t i = 0; i < std::size(kGeometry); ++i) {
    const std::string text = kGeometry[i].text + (" " + usual_text(kGeometry[i].member));
    command.add_option(kGeometry[i].option, options.geometry[i], text)->excludes(model);
  }
}

void add_problem(CLI::App& command, DecodeOptions& options) {
  command
      .add_option("--contexts", options.contexts,
                  "Keys per sequence, for example 2048,8192 or 2K,8K [2K..128K; cuda: 32K,128K,1M]")
      ->delimiter(',')
      ->transform(CLI::AsSizeValue(false))
      ->check(between(std::int64_t{1}, (std::int64_t{1} << 31) - 1));
  command.add_option("--batch", options.batch, "Sequences per step")->check(between(1, 1 << 16))->capture_default_str();
  command.add_option("--lengths", options.lengths, "same, or mixed: log-uniform from 1K to the context")
      ->check(CLI::IsMember({"same", "mixed"}))
      ->capture_default_str();
  command.add_option("--queries", options.queries, "Query tokens per sequence, as in speculative verification")
      ->check(between(1, 16))
      ->capture_default_str();
  command
      .add_option("--agreement", options.agreement,
                  "Correlation of a sequence's query vectors: each mixes one common vector, by the square root of "
                  "this, with noise of its own; 0: independent, 1: all choose the same kv_blocks [0.99]")
      ->check(between(0.0, 1.0));
  command.add_option("--page-size", options.page_size, "Keys per cache page [--block-size]");
  options.add_dtype(command, "fp32, bf16 or fp16 [fp32; cuda: bf16]");
  command.add_option("--kv-dtype", options.kv_dtype, "e4m3: keys and values in fp8 [--dtype]")
      ->check(CLI::IsMember({"e4m3"}));
  command.add_option("--index-dtype", options.index_dtype, "e4m3: index keys in fp8 [--dtype]")
      ->check(CLI::IsMember({"e4m3"}));
  command
      .add_option(
          "--index-q-rounding", options.index_q_rounding,
          "How index queries meet index keys in fp8: scaled, rounded to e4m3 with a scale per row; cast, rounded as "
          "they are; exact, not rounded")
      ->check(CLI::IsMember({"scaled", "cast", "exact"}))
      ->capture_default_str();
  options.add_seed(command);
}

}  // namespace

void add_bench_decode(CLI::App& bench) {
  auto options = std::make_shared<DecodeOptions>();
  options->repeats = 20;
  CLI::App* command = bench.add_subcommand("decode", "Attention time per new token as the context grows");
  command->footer(
      "Caches hold random numbers in pages of random order. A few queries of every context are checked against the\n"
      "reference backend before it is measured. Every step finds its keys in memory, not in the processor's caches.\n"
      "Times are those of one layer: sparse is the whole, index its selection alone, attend its attention alone.\n"
      "On the GPU a CUDA graph holds several layers, each with pages and queries of its own, and the time is the "
      "graph's\n"
      "divided by their number; dense attention is not run there, only bounded by what it has to read.\n"
      "Examples:\n"
      "  msa bench decode --num-heads-q 64 --num-heads-kv 4 --head-dim 128 --index-dim 128 --dtype bf16\n"
      "  msa bench decode --backend cuda --contexts 32K,128K --batch 32\n"
      "  msa bench decode --backend cuda --contexts 1M --index-dtype e4m3\n"
      "  msa bench decode --backend cuda --contexts 128K --batch 8 --queries 8 --agreement 0.9\n"
      "  msa bench decode --backend cuda --contexts 1M --batch 64 --lengths mixed");
  options->add_backend(*command);
  add_geometry(*command, *options);
  add_problem(*command, *options);
  options->add_repeats(*command);
  options->add_threads(*command);
  options->add_json(*command);
  command->callback([options] { run(*options); });
}

}  // namespace openmsa::cli
