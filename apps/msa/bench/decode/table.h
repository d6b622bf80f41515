// Figures of decode steps as a table on standard output.
#pragma once

#include <string>

#include "msa/bench/decode/figures.h"

namespace openmsa::cli {

/// Prints, on the CPU, a line per context, sparse beside dense, and how near dense attention comes to the rate of
/// copying. With a rate of plain reading, on the GPU, a line per stage, with what it reads and how near that comes to
/// the rate.
void print_table(const Config& config, const DecodeShape& shape, const std::vector<DecodeFigures>& figures,
                 const MemoryRates& rates);

}  // namespace openmsa::cli
