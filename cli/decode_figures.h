// What a decode step costs: time, bytes read, and both as a table and as JSON.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <openmsa/openmsa.hpp>

#include "decode_problem.h"
#include "timing.h"

namespace openmsa::cli {

/// One context: the whole layer, its two branches alone, and dense attention; each per step of the whole batch.
struct DecodeFigures {
  std::int64_t context;
  Timing sparse;
  Timing index;
  Timing attend;
  Timing dense;
};

/// Leaves `problem` at `context`. A few steps to warm up are not kept; `on_repeat` hears of the others, from 0.
DecodeFigures measure_decode(const Plan& plan, DecodeProblem& problem, std::int64_t context, int repeats,
                             const std::function<void(int)>& on_repeat);

/// {"context", and for each of sparse, index, attend, dense: "median_ms", "min_ms", "max_ms", "bytes", "gb_per_s"}
nlohmann::ordered_json to_json(const Config& config, const DecodeFigures& figures);

void print_header(const Config& config);
void print_row(const Config& config, const DecodeFigures& figures);

}  // namespace openmsa::cli
