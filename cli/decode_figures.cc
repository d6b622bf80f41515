#include "decode_figures.h"

#include <algorithm>
#include <cstdio>

#include "dtype_name.h"

namespace openmsa::cli {
namespace {

using nlohmann::ordered_json;

/// Bytes of the caches that a step has to read. Where topk covers the context there is nothing to score.
struct Traffic {
  double index;
  double attend;
  double dense;
};

Traffic traffic(const Config& config, std::int64_t context) {
  const double element = static_cast<double>(openmsa_dtype_bytes(config.dtype)) * static_cast<double>(config.max_batch);
  const double token = 2.0 * config.num_heads_kv * config.head_dim * element;
  const std::int64_t chosen = std::min<std::int64_t>(context, config.topk * config.block_size);
  const double index = chosen == context ? 0 : static_cast<double>(context) * config.index_dim * element;
  return {index, static_cast<double>(chosen) * token, static_cast<double>(context) * token};
}

ordered_json to_json(const Timing& timing, double bytes) {
  return {{"median_ms", timing.median()},
          {"min_ms", timing.min()},
          {"max_ms", timing.max()},
          {"bytes", bytes},
          {"gb_per_s", bytes / timing.median() * 1e-6}};
}

}  // namespace

DecodeFigures measure_decode(const Plan& plan, DecodeProblem& problem, std::int64_t context, int repeats,
                             const std::function<void(int)>& on_repeat) {
  constexpr int kWarmup = 2;
  problem.set_context(context);
  Workspace workspace;
  DecodeFigures warmup{};
  DecodeFigures kept{};
  kept.context = context;
  for (int i = 0; i < kWarmup + repeats; ++i) {
    DecodeFigures& into = i < kWarmup ? warmup : kept;
    const auto time = [&](Timing& timing, openmsa_op op) {
      problem.rotate();
      const Tensors tensors = problem.tensors(op);
      timing.measure([&] { plan.run(op, tensors, workspace); });
    };
    time(into.sparse, OPENMSA_OP_MSA_ATTENTION);
    time(into.index, OPENMSA_OP_SELECT_BLOCKS);
    time(into.attend, OPENMSA_OP_SPARSE_ATTENTION);
    time(into.dense, OPENMSA_OP_DENSE_ATTENTION);
    if (i >= kWarmup) on_repeat(i - kWarmup);
  }
  return kept;
}

ordered_json to_json(const Config& config, const DecodeFigures& row) {
  const Traffic bytes = traffic(config, row.context);
  return {{"context", row.context},
          {"sparse", to_json(row.sparse, bytes.index + bytes.attend)},
          {"index", to_json(row.index, bytes.index)},
          {"attend", to_json(row.attend, bytes.attend)},
          {"dense", to_json(row.dense, bytes.dense)}};
}

void print_header(const Config& config) {
  std::printf(
      "Attention of one layer per decode step, ms (median, min..max); %d query and %d KV heads of %d, "
      "%d of %d-token kv_blocks, %s, batch %lld\n",
      config.num_heads_q, config.num_heads_kv, config.head_dim, config.topk, config.block_size,
      dtype_name(config.dtype), static_cast<long long>(config.max_batch));
  std::printf("%8s  %24s  %9s  %9s  %24s  %7s  %16s\n", "context", "sparse", "= index", "+ attend", "dense", "faster",
              "GB/s sparse dense");
}

void print_row(const Config& config, const DecodeFigures& row) {
  const Traffic bytes = traffic(config, row.context);
  const auto rate = [](double moved, const Timing& timing) { return moved / timing.median() * 1e-6; };
  std::printf("%8lld  %8.3f %7.3f..%-7.3f  %9.3f  %9.3f  %8.3f %7.3f..%-7.3f  %6.2fx  %11.1f %5.1f\n",
              static_cast<long long>(row.context), row.sparse.median(), row.sparse.min(), row.sparse.max(),
              row.index.median(), row.attend.median(), row.dense.median(), row.dense.min(), row.dense.max(),
              row.dense.median() / row.sparse.median(), rate(bytes.index + bytes.attend, row.sparse),
              rate(bytes.dense, row.dense));
}

}  // namespace openmsa::cli
