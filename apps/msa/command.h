// The subcommands of msa. Each add_* registers options and a callback; each file holds one.
#pragma once

#include <CLI/CLI.hpp>

namespace openmsa::cli {

void add_attend(CLI::App& app);
void add_train(CLI::App& app);
void add_eval(CLI::App& app);
void add_generate(CLI::App& app);
void add_bench(CLI::App& app);
void add_report(CLI::App& app);
void add_verify(CLI::App& app);
void add_info(CLI::App& app);

}  // namespace openmsa::cli
