// msa verify: the backends of this machine against the reference, over a grid of shapes and dtypes.
#include "msa/command.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "io/error.h"
#include "io/json_file.h"
#include "judge/shards.h"
#include "msa/device/call.h"
#include "msa/machine.h"
#include "msa/number.h"
#include "msa/options.h"
#include "msa/outputs.h"
#include "msa/progress.h"
#include "msa/verify/report.h"

namespace openmsa::cli {
namespace {

/// MiniMax-M3's heads first, then heads, kv_blocks, pages and forced blocks of every kind; the last ones are for CPUs
/// alone.
// clang-format off
constexpr VerifyShape kShapes[] = {
    // kv heads  group  head_dim  index_dim  block  topk  init  local  page  decode
      {       1,    16,      128,       128,   128,    2,    0,     1,    0,  false},
      {       1,    16,      128,       128,   128,    2,    0,     1,  128,   true},
      {       2,    16,      128,       128,   128,   16,    0,     1,   64,   true},
      {       1,     8,       64,        64,    64,    4,    0,     1,    0,  false},
      {       2,     4,       64,        64,    64,    3,    1,     1,    0,  false},
      {       2,     4,       64,        64,    64,    3,    1,     1,    0,   true},
      {       2,     4,      128,        64,    64,   17,    1,     2,   32,   true},
      {       2,     4,      128,        64,    64,    2,    2,     2,    0,  false},
      {       2,     2,      128,        64,    64,    2,    0,     0,   16,  false},
      {       5,     2,       64,       128,   128,   33,    2,     3,   32,   true},
      {       4,     1,       64,       128,    64,    4,    0,     2,   32,   true},
      {       3,     1,       64,        64,    64,    1,    0,     1,    0,  false},
      {       1,     8,       64,        64,    64,   16,    2,     3,   64,   true},
      {       1,     2,       64,       128,    64,   64,    0,     1,   16,   true},
      {       2,     3,       40,        24,    16,    4,    1,     1,    8,   true},
      {       2,     3,       40,        24,    16,    4,    1,     1,    0,  false},
      {       1,    64,        8,         8,     8,    3,    0,     1,    0,   true},
      {       1,     3,      256,       256,   256,    2,    0,     1,    0,  false},
      {       2,     2,      128,       128,    32,    6,    0,     1,    1,   true},
      {       2,     2,       64,        64,    32,    6,    1,     0,    0,  false},
};
// clang-format on

struct VerifyCommand {
  std::string backend = "all";
  int threads = 0;
  double tolerance = 1;
  std::string json;

  void run() const;

 private:
  VerifyReport verify(const BackendOptions& options) const;
};

/// Whether the backend serves the call; if not, it has written nothing.
bool run_if_served(Device& device, const Config& config, openmsa_op op, const Tensors& tensors) try {
  run_on_device(device, config, Plan(config), op, tensors);
  return true;
} catch (const Error& error) {
  if (error.status() != OPENMSA_UNSUPPORTED) throw;
  return false;
}

/// openmsa_append_kv stores the keys of all sequences, not only those of their queries.
judge::Layer as_appended(judge::Layer layer) {
  layer.tensors["cu_seqlens_q"] = layer.tensors.at("cu_seqlens_k");
  return layer;
}

/// Later operations read them in the dtypes that all backends take.
judge::TensorMap for_later_operations(judge::TensorMap results) {
  for (auto& [name, buffer] : results) {
    if (buffer.dtype() == OPENMSA_FLOAT64) buffer = buffer.as(OPENMSA_FLOAT32);
  }
  return results;
}

/// One shape in one format on one backend.
class Case {
 public:
  Case(const VerifyShape& shape, const Format& format, Device& device, VerifyReport& report)
      : shape_(shape), format_(format), device_(device), report_(report) {}

  void verify(const BackendOptions& options) {
    judge::Layer layer = judge::make_layer(shape_.in(format_)).on(options.id());
    layer.config.num_threads = options.threads;
    layer.config.max_total_q = std::max(layer.total_q(), layer.total_k());
    for (const openmsa_op op : operations(shape_)) {
      const judge::TensorMap expected = verify(op == OPENMSA_OP_APPEND_KV ? as_appended(layer) : layer, op);
      if (op != OPENMSA_OP_APPEND_KV && op != OPENMSA_OP_MSA_ATTENTION) layer.add(expected);
    }
    if (shape_.page_size > 0) verify_shards(layer);
  }

 private:
  /// Reports on one call; the reference's results, empty where nothing reads them and the backend has none.
  judge::TensorMap verify(const judge::Layer& call, openmsa_op op) {
    const judge::TensorMap got = outputs_of(call, op);
    const bool is_served = run_if_served(device_, call.config, op, judge::gather(call, op, got));
    if (op == OPENMSA_OP_MSA_ATTENTION && !is_served) return {};
    judge::TensorMap expected = expected_results(call, op, got);
    if (is_served) report_.add(format_, op, shape_, findings(call, op, got, expected));
    return for_later_operations(std::move(expected));
  }

  /// The same keys in shards, rank by rank, over the layer's topk_indices; and what is merged of the reference's parts.
  void verify_shards(const judge::Layer& layer) {
    constexpr std::int32_t kShards = 3;
    std::vector<judge::Buffer> candidates, o, lse;
    for (std::int32_t rank = 0; rank < kShards; ++rank) {
      const judge::Layer shard = judge::shard_of(layer, kShards, rank);
      candidates.push_back(verify(shard, OPENMSA_OP_SELECT_CANDIDATES).at("candidates"));
      const judge::TensorMap part = verify(shard, OPENMSA_OP_SPARSE_ATTENTION);
      o.push_back(part.at("o"));
      lse.push_back(part.at("lse"));
    }
    judge::Layer merging = layer;
    merging.config.shard_count = kShards;
    merging.add({{"all_candidates", judge::stacked(candidates)},
                 {"partial_o", judge::stacked(o)},
                 {"partial_lse", judge::stacked(lse)}});
    verify(merging, OPENMSA_OP_MERGE_CANDIDATES);
    verify(merging, OPENMSA_OP_MERGE_PARTIALS);
  }

  const VerifyShape& shape_;
  const Format& format_;
  Device& device_;
  VerifyReport& report_;
};

VerifyReport VerifyCommand::verify(const BackendOptions& options) const {
  VerifyReport report(options.backend, tolerance);
  const auto device = make_device(options.id());
  Progress progress("verify " + options.backend, std::ssize(kShapes));
  std::int64_t done = 0;
  for (const VerifyShape& shape : kShapes) {
    for (const Format& format : kFormats) {
      if (!format.has_fp8_keys || shape.page_size > 0) Case(shape, format, *device, report).verify(options);
    }
    progress.update(++done);
  }
  return report;
}

/// What keeps the CUDA backend from running here; "" when nothing does.
std::string cuda_obstacle() try {
  const Plan plan(judge::make_layer(kShapes[0].in(kFormats[1])).on(OPENMSA_BACKEND_CUDA).config);
  return "";
} catch (const Error& error) {
  return error.what();
}

void VerifyCommand::run() const {
  check_outputs({{"--json", json}});
  const std::string obstacle = cuda_obstacle();
  if (!obstacle.empty() && backend == "cuda") throw io::InputError(obstacle);
  const auto start = std::chrono::steady_clock::now();
  std::printf("openmsa %s, %s, CPU features %s\n", openmsa_version(), machine_facts()["cpu"].get<std::string>().c_str(),
              openmsa_cpu_features());
  std::printf("Largest error against float64, in parts of what the dtype allows: up to %g is right.\n", tolerance);
  nlohmann::ordered_json figures = {{"tolerance", tolerance}, {"backends", nlohmann::ordered_json::array()}};
  int comparisons = 0, wrong = 0;
  for (const char* name : {"cpu", "cuda"}) {
    if (backend != "all" && backend != name) continue;
    const BackendOptions options{name, threads};
    if (options.is_cuda() && !obstacle.empty()) {
      std::printf("\n%s: not verified; %s\n", name, obstacle.c_str());
      figures["backends"].push_back({{"backend", name}, {"not_verified", obstacle}});
      continue;
    }
    const VerifyReport report = verify(options);
    report.print();
    figures["backends"].push_back(report.json());
    comparisons += report.num_comparisons();
    wrong += report.num_wrong();
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("\n%d comparisons, %d wrong, in %.1f s\n", comparisons, wrong, seconds);
  figures["seconds"] = seconds;
  figures["machine"] = machine_facts();
  if (!json.empty()) io::write_json(json, figures);
  if (wrong > 0) {
    throw std::runtime_error(std::to_string(wrong) + " of " + std::to_string(comparisons) +
                             " results differ from the reference");
  }
}

}  // namespace

void add_verify(CLI::App& app) {
  auto options = std::make_shared<VerifyCommand>();
  CLI::App* command = app.add_subcommand("verify", "Compare the backends of this machine with the reference");
  command->footer(
      "Runs every operation on small layers of many shapes and dtypes, in under a minute. Exit status 1 when a result\n"
      "differs from the float64 reference by more than its dtype allows. What a backend does not serve shows as -.\n"
      "Example:\n"
      "  msa verify --json verify.json");
  command->add_option("--backend", options->backend, "all that run here, or cpu or cuda")
      ->check(CLI::IsMember({"all", "cpu", "cuda"}))
      ->capture_default_str();
  command->add_option("--threads", options->threads, "Threads of the cpu backend; 0: one per core")
      ->check(between(0, 4096))
      ->capture_default_str();
  command->add_option("--tolerance", options->tolerance, "How many times the allowed error is still right")
      ->check(between(0.0, 1e9))
      ->capture_default_str();
  command->add_option("--json", options->json, "Write every result as JSON")->type_name("FILE");
  command->callback([options] { options->run(); });
}

}  // namespace openmsa::cli
