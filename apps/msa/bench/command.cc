// msa bench: one nested command per measurement.
#include "msa/bench/command.h"

#include "msa/command.h"

namespace openmsa::cli {

void add_bench(CLI::App& app) {
  CLI::App* command = app.add_subcommand("bench", "Measure the library on this machine");
  command->footer("msa bench COMMAND --help has the options of a measurement, and examples.");
  command->require_subcommand(1);
  add_bench_decode(*command);
  add_bench_prefill(*command);
  add_bench_train(*command);
}

}  // namespace openmsa::cli
