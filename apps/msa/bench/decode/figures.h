// The cost of a decode step: time and bytes read.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <openmsa/openmsa.hpp>
#include <optional>

#include "msa/bench/decode/problem.h"
#include "msa/device/timing.h"

namespace openmsa::cli {

/// Bytes of the caches that a step has to read. Where topk covers a sequence there is nothing to score.
struct Traffic {
  double index = 0;
  double attend = 0;
  double dense = 0;

  double sparse() const { return index + attend; }
};

/// One problem: the whole layer, its two branches alone, and dense attention; each per step of the whole batch.
struct DecodeFigures {
  std::int64_t context;
  Traffic bytes;
  double chosen_blocks =
      0;  // different kv_blocks that the queries of a sequence chose, mean over sequences and KV heads
  Timing sparse;
  Timing index;
  Timing attend;
  std::optional<Timing> dense;  // the CUDA backend has none
};

/// Rates of plain code on the same machine, in GB/s: kernels that only read on a GPU, memcpy on the CPU, counting
/// what it reads and what it writes.
struct MemoryRates {
  std::optional<double> read, copy;
};

/// A few runs to warm up are not kept; `on_repeat` hears of the others, from 0.
DecodeFigures measure_decode(const Plan& plan, const DecodeProblem& problem, int repeats,
                             const std::function<void(int)>& on_repeat);

/// {"context", "chosen_kv_blocks", and for each of sparse, index, attend, dense: "median_ms", "min_ms", "max_ms",
/// "bytes", "gb_per_s"}. With the rate of plain reading: each one's "share_of_read", and "dense_bound" {"ms", "bytes"};
/// with that of copying: "share_of_copy".
nlohmann::ordered_json to_json(const DecodeFigures& figures, const MemoryRates& rates);

}  // namespace openmsa::cli
