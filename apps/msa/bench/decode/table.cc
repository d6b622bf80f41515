#include "msa/bench/decode/table.h"

#include <cstdio>

#include "io/dtype.h"
#include "msa/machine.h"

namespace openmsa::cli {
namespace {

void print_problem(const char* what, const Config& config, const DecodeShape& shape) {
  std::printf(
      "Attention of one layer per decode step, %s; %d query and %d KV heads of %d, "
      "%d of %d-token kv_blocks, %s (k and v %s, index keys %s), batch %lld",
      what, config.num_heads_q, config.num_heads_kv, config.head_dim, config.topk, config.block_size,
      io::dtype_name(config.dtype), io::dtype_name(config.kv_dtype), io::dtype_name(config.index_dtype),
      static_cast<long long>(config.max_batch));
  if (config.page_size != config.block_size) std::printf(", pages of %d", config.page_size);
  if (shape.queries > 1) std::printf(", %d query tokens per sequence", shape.queries);
  if (shape.has_mixed_lengths) std::printf(", lengths %lld to context", static_cast<long long>(kShortestMixed));
  std::printf("\n");
}

double rate(double bytes, const Timing& timing) { return bytes / timing.median() * 1e-6; }

void print_contexts(const Config& config, const std::vector<DecodeFigures>& figures, double copy) {
  std::printf("%s; a plain copy on the same threads: %.1f GB/s, read and written\n",
              processor_line(io::dtype_name(config.dtype)).c_str(), copy);
  std::printf("%8s  %24s  %9s  %9s  %24s  %7s  %16s  %7s\n", "context", "sparse", "= index", "+ attend", "dense",
              "faster", "GB/s sparse dense", "of copy");
  for (const DecodeFigures& row : figures) {
    const Timing& dense = *row.dense;
    std::printf("%8lld  %8.3f %7.3f..%-7.3f  %9.3f  %9.3f  %8.3f %7.3f..%-7.3f  %6.2fx  %10.1f %5.1f  %5.0f %%\n",
                static_cast<long long>(row.context), row.sparse.median(), row.sparse.min(), row.sparse.max(),
                row.index.median(), row.attend.median(), dense.median(), dense.min(), dense.max(),
                dense.median() / row.sparse.median(), rate(row.bytes.sparse(), row.sparse),
                rate(row.bytes.dense, dense), 100 * rate(row.bytes.dense, dense) / copy);
  }
}

void print_stage(const std::string& context, const char* stage, const Timing& timing, double bytes, double read) {
  std::printf("%8s %8s %10.2f %9.2f..%-9.2f %10.2f %8.0f %6.1f %%", context.c_str(), stage, timing.median() * 1e3,
              timing.min() * 1e3, timing.max() * 1e3, bytes * 1e-6, rate(bytes, timing),
              100 * rate(bytes, timing) / read);
}

void print_stages(const std::vector<DecodeFigures>& figures, double read) {
  std::printf("Reading memory and nothing else: %.0f GB/s\n", read);
  std::printf("%8s %8s %31s %10s %8s %8s\n", "context", "stage", "us", "MB", "GB/s", "of read");
  for (const DecodeFigures& row : figures) {
    print_stage(std::to_string(row.context), "index", row.index, row.bytes.index, read);
    std::printf("\n");
    print_stage("", "attend", row.attend, row.bytes.attend, read);
    std::printf("  %.1f kv_blocks per sequence and head\n", row.chosen_blocks);
    print_stage("", "sparse", row.sparse, row.bytes.sparse(), read);
    std::printf("\n%8s %8s %10.2f %20s %10.2f  bound: what dense attention reads, at that rate\n", "", "dense",
                row.bytes.dense / read * 1e-3, "", row.bytes.dense * 1e-6);
  }
}

}  // namespace

void print_table(const Config& config, const DecodeShape& shape, const std::vector<DecodeFigures>& figures,
                 const MemoryRates& rates) {
  if (rates.read) {
    print_problem("us (median, min..max), many calls in one CUDA graph", config, shape);
    print_stages(figures, *rates.read);
  } else {
    print_problem("ms (median, min..max)", config, shape);
    print_contexts(config, figures, *rates.copy);
  }
}

}  // namespace openmsa::cli
