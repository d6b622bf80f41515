// msa bench decode: attention time per new token as the context grows, sparse beside dense on the same paged caches.
#include <algorithm>
#include <memory>
#include <numeric>
#include <openmsa/openmsa.hpp>
#include <string>
#include <vector>

#include "bench.h"
#include "decode_check.h"
#include "decode_figures.h"
#include "decode_problem.h"
#include "dtype_name.h"
#include "io/error.h"
#include "io/json_file.h"
#include "lm/config.h"
#include "machine.h"
#include "progress.h"

namespace openmsa::cli {
namespace {

using nlohmann::ordered_json;

struct Geometry {
  std::int32_t num_heads_q = 8;
  std::int32_t num_heads_kv = 2;
  std::int32_t head_dim = 64;
  std::int32_t index_dim = 64;
  std::int32_t block_size = 128;
  std::int32_t topk = 16;
};

struct BenchOptions {
  Geometry geometry;
  std::string model;
  std::int64_t batch = 1;
  std::string dtype = "fp32";
  std::vector<std::int64_t> contexts = {2048, 4096, 8192, 16384, 32768, 65536, 131072};
  int repeats = 20;
  int threads = 0;
  std::uint64_t seed = 1;
  std::string json;
};

Geometry geometry_of_model(const std::string& directory) {
  const lm::ModelConfig model = lm::config_from_json(io::read_json(directory + "/config.json"));
  if (!model.has_sparse_layers()) throw io::InputError(directory + ": expected a model with sparse layers, got none");
  return {model.num_heads_q, model.num_heads_kv, model.head_dim, model.index_dim, model.block_size, model.topk};
}

Config decode_config(const BenchOptions& options) {
  const Geometry geometry = options.model.empty() ? options.geometry : geometry_of_model(options.model);
  Config config = openmsa::config();
  for (const auto& [name, dtype] : kFloatTypes) {
    if (options.dtype == name) config.dtype = dtype;
  }
  config.num_heads_q = geometry.num_heads_q;
  config.num_heads_kv = geometry.num_heads_kv;
  config.head_dim = geometry.head_dim;
  config.index_dim = geometry.index_dim;
  config.block_size = geometry.block_size;
  config.page_size = geometry.block_size;
  config.topk = geometry.topk;
  config.max_batch = options.batch;
  config.max_total_q = options.batch;
  config.max_seqlen_k = *std::max_element(options.contexts.begin(), options.contexts.end());
  config.num_threads = options.threads;
  return config;
}

ordered_json to_json(const Config& config, const BenchOptions& options, const std::vector<DecodeFigures>& figures) {
  ordered_json results = ordered_json::array();
  for (const DecodeFigures& row : figures) results.push_back(to_json(config, row));
  return {{"geometry",
           {{"num_heads_q", config.num_heads_q},
            {"num_heads_kv", config.num_heads_kv},
            {"head_dim", config.head_dim},
            {"index_dim", config.index_dim},
            {"block_size", config.block_size},
            {"topk", config.topk},
            {"page_size", config.page_size},
            {"batch", config.max_batch},
            {"dtype", dtype_name(config.dtype)}}},
          {"backend", "cpu"},
          {"threads", options.threads == 0 ? usable_cores() : options.threads},
          {"repeats", options.repeats},
          {"results", results},
          {"machine", machine_facts()}};
}

void run(const BenchOptions& options) {
  const Config config = decode_config(options);
  const Plan plan(config);
  const auto& contexts = options.contexts;  // time grows with them
  Progress progress("bench decode",
                    options.repeats * std::accumulate(contexts.begin(), contexts.end(), std::int64_t{0}));
  DecodeProblem problem(config, options.seed);
  problem.set_context(*std::min_element(options.contexts.begin(), options.contexts.end()));
  check_decode(plan, problem);

  std::vector<DecodeFigures> figures;
  std::int64_t measured = 0;
  for (std::int64_t context : contexts) {
    figures.push_back(measure_decode(plan, problem, context, options.repeats, [&](int repeat) {
      progress.update(measured + context * repeat, std::to_string(context) + " keys");
    }));
    measured += context * options.repeats;
  }
  progress.finish();
  print_header(config);
  for (const DecodeFigures& row : figures) print_row(config, row);
  if (!options.json.empty()) io::write_json(options.json, to_json(config, options, figures));
}

void add_geometry(CLI::App& command, Geometry& geometry, CLI::Option* model) {
  const auto add = [&](const char* name, std::int32_t& value, const char* text) {
    command.add_option(name, value, text)->capture_default_str()->excludes(model);
  };
  add("--num-heads-q", geometry.num_heads_q, "Query heads");
  add("--num-heads-kv", geometry.num_heads_kv, "KV heads");
  add("--head-dim", geometry.head_dim, "Channels per head");
  add("--index-dim", geometry.index_dim, "Channels of the index branch");
  add("--block-size", geometry.block_size, "Keys per kv_block, and per cache page");
  add("--topk", geometry.topk, "kv_blocks kept per query and KV head");
}

}  // namespace

void add_bench_decode(CLI::App& bench) {
  auto options = std::make_shared<BenchOptions>();
  CLI::App* command = bench.add_subcommand("decode", "Attention time per new token as the context grows");
  command->footer(
      "Caches hold random numbers in pages of random order. The result is checked against the reference backend at "
      "the\n"
      "smallest context before anything is measured. Every step finds its keys in memory, not in the processor's "
      "caches.\n"
      "Times are those of one layer.\n"
      "Example:\n"
      "  msa bench decode --num-heads-q 64 --num-heads-kv 4 --head-dim 128 --index-dim 128 --dtype bf16");
  auto* model =
      command->add_option("--model", options->model, "Take the geometry from DIR/config.json")->type_name("DIR");
  add_geometry(*command, options->geometry, model);
  command->add_option("--batch", options->batch, "Sequences per step")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  command->add_option("--dtype", options->dtype, "fp32, bf16 or fp16")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}))
      ->capture_default_str();
  command->add_option("--contexts", options->contexts, "Keys per sequence, for example 2048,8192 or 2K,8K [2K..128K]")
      ->delimiter(',')
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 31));
  command->add_option("--repeats", options->repeats, "Measurements of each figure")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  command->add_option("--threads", options->threads, "Threads; 0: one per core")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  command->add_option("--seed", options->seed, "Of the random caches")->capture_default_str();
  command->add_option("--json", options->json, "Write the figures as JSON")->type_name("FILE");
  command->callback([options] { run(*options); });
}

}  // namespace openmsa::cli
