// The measurements of msa bench, each in a folder of its own.
#pragma once

#include <CLI/CLI.hpp>

namespace openmsa::cli {

void add_bench_decode(CLI::App& bench);
void add_bench_prefill(CLI::App& bench);
void add_bench_train(CLI::App& bench);

}  // namespace openmsa::cli
