#include "msa/bench/decode/figures.h"

#include <algorithm>
#include <list>
#include <set>

namespace openmsa::cli {
namespace {

using nlohmann::ordered_json;

/// Adds what attention reads, and how many kv_blocks that is, for one sequence and KV head whose queries made `rows` of
/// the selection.
void add_chosen(const Config& config, std::span<const std::int32_t> rows, std::int64_t seqlen_k, double bytes_per_key,
                DecodeFigures& figures) {
  std::set<std::int64_t> chosen(rows.begin(), rows.end());
  chosen.erase(-1);
  figures.chosen_blocks += static_cast<double>(chosen.size());
  for (std::int64_t block : chosen) {
    const std::int64_t keys = std::min<std::int64_t>(seqlen_k - block * config.block_size, config.block_size);
    figures.bytes.attend += static_cast<double>(keys) * bytes_per_key;
  }
}

/// Bytes and kv_blocks of the mean call, over the selections that the problem holds.
void count_reads(const DecodeProblem& problem, DecodeFigures& figures) {
  const Config& config = problem.config();
  const auto bytes = [](openmsa_dtype dtype) { return static_cast<double>(openmsa_dtype_bytes(dtype)); };
  const double head_key = 2.0 * config.head_dim * bytes(config.kv_dtype);  // K and V of one KV head
  const double index_key = config.index_dim * bytes(config.index_dtype);
  for (double length : problem.seqlens_k()) {
    const bool is_scored = length > static_cast<double>(config.topk) * config.block_size;
    if (is_scored) figures.bytes.index += length * index_key;
    figures.bytes.dense += length * config.num_heads_kv * head_key;
  }
  const std::int64_t queries = problem.shape().queries;
  for (int call = 0; call < problem.num_calls(); ++call) {
    const std::vector<std::int32_t> selection = problem.selection(call);
    auto rows = std::span(selection);
    for (std::int32_t head = 0; head < config.num_heads_kv; ++head) {
      for (std::int32_t length : problem.seqlens_k()) {
        add_chosen(config, rows.first(queries * config.topk), length, head_key, figures);
        rows = rows.subspan(queries * config.topk);
      }
    }
  }
  figures.bytes.attend /= problem.num_calls();
  figures.chosen_blocks /= static_cast<double>(problem.num_calls()) * config.num_heads_kv * config.max_batch;
}

/// One operation of the problem's calls, ready to be timed.
struct Stage {
  Stage(const Plan& plan, const DecodeProblem& problem, openmsa_op op)
      : workspace(problem.device(), plan.workspace_bytes(op)),
        series(problem.device().record(problem.num_calls(), [this, &plan, &problem, op](int call, void* stream) {
          openmsa_workspace memory = workspace.workspace();
          memory.stream = stream;
          plan.run(op, problem.tensors(op, call), memory);
        })) {}
  Stage(const Stage&) = delete;  // the series refers to it
  Stage& operator=(const Stage&) = delete;

  DeviceBuffer workspace;
  std::unique_ptr<Series> series;
};

/// Every call needs a selection to attend to.
void select_all(const Plan& plan, const DecodeProblem& problem) {
  const openmsa_op op = OPENMSA_OP_SELECT_BLOCKS;
  const DeviceBuffer workspace(problem.device(), plan.workspace_bytes(op));
  for (int call = 0; call < problem.num_calls(); ++call) {
    problem.device().time([&] { plan.run(op, problem.tensors(op, call), workspace.workspace()); });
  }
}

ordered_json to_json(const Timing& timing, double bytes, const MemoryRates& rates) {
  const double rate = bytes / timing.median() * 1e-6;
  ordered_json result = {{"median_ms", timing.median()},
                         {"min_ms", timing.min()},
                         {"max_ms", timing.max()},
                         {"bytes", bytes},
                         {"gb_per_s", rate}};
  if (rates.read) result["share_of_read"] = rate / *rates.read;
  if (rates.copy) result["share_of_copy"] = rate / *rates.copy;
  return result;
}

}  // namespace

DecodeFigures measure_decode(const Plan& plan, const DecodeProblem& problem, int repeats,
                             const std::function<void(int)>& on_repeat) {
  constexpr int kWarmup = 2;
  DecodeFigures figures{};
  figures.context = problem.shape().context;
  select_all(plan, problem);
  count_reads(problem, figures);

  std::list<std::pair<Stage, Timing*>> stages;
  const auto add = [&](openmsa_op op, Timing& timing) {
    stages.emplace_back(std::piecewise_construct, std::forward_as_tuple(plan, problem, op),
                        std::forward_as_tuple(&timing));
  };
  add(OPENMSA_OP_MSA_ATTENTION, figures.sparse);
  add(OPENMSA_OP_SELECT_BLOCKS, figures.index);
  add(OPENMSA_OP_SPARSE_ATTENTION, figures.attend);
  if (problem.config().backend != OPENMSA_BACKEND_CUDA) add(OPENMSA_OP_DENSE_ATTENTION, figures.dense.emplace());
  for (int i = 0; i < kWarmup + repeats; ++i) {
    for (auto& [stage, timing] : stages) {
      const double milliseconds = stage.series->run();
      if (i >= kWarmup) timing->keep(milliseconds);
    }
    if (i >= kWarmup) on_repeat(i - kWarmup);
  }
  return figures;
}

ordered_json to_json(const DecodeFigures& row, const MemoryRates& rates) {
  ordered_json result = {{"context", row.context},
                         {"chosen_kv_blocks", row.chosen_blocks},
                         {"sparse", to_json(row.sparse, row.bytes.sparse(), rates)},
                         {"index", to_json(row.index, row.bytes.index, rates)},
                         {"attend", to_json(row.attend, row.bytes.attend, rates)}};
  if (row.dense) result["dense"] = to_json(*row.dense, row.bytes.dense, rates);
  if (rates.read) {
    result["dense_bound"] = {{"ms", row.bytes.dense / *rates.read * 1e-6}, {"bytes", row.bytes.dense}};
  }
  return result;
}

}  // namespace openmsa::cli
