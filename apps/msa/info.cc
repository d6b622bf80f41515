// msa info: version, processor, backends.
#include <cstdio>
#include <memory>
#include <openmsa/openmsa.hpp>

#include "io/json_file.h"
#include "msa/command.h"
#include "msa/machine.h"
#include "msa/outputs.h"

namespace openmsa::cli {
namespace {

void run(const std::string& json_path) {
  check_outputs({{"--json", json_path}});
  nlohmann::ordered_json facts = machine_facts();
  facts["backends"] = {
      {{"name", "cpu"}, {"dtypes", {"fp32", "bf16", "fp16"}}, {"threads", default_threads()}},
      {{"name", "cuda"}, {"dtypes", {"bf16", "fp16"}}, {"device", openmsa_cuda_device()}},
      {{"name", "reference"}, {"dtypes", {"fp64", "fp32", "bf16", "fp16"}}, {"threads", 1}},
  };
  std::printf("openmsa       %s\n", openmsa_version());
  std::printf("processor     %s, %d cores, %.1f GiB\n", facts["cpu"].get<std::string>().c_str(), usable_cores(),
              facts["memory_gib"].get<double>());
  std::printf("CPU features  %s\n", openmsa_cpu_features());
  std::printf("backends      cpu (SIMD, %d threads; fp32, bf16, fp16)\n", default_threads());
  std::printf("              cuda (%s; bf16, fp16)\n", openmsa_cuda_device());
  std::printf("              reference (float64 sums, 1 thread; fp64, fp32, bf16, fp16)\n");
  std::printf("built with    %s\n", OPENMSA_COMPILER);
  if (!json_path.empty()) io::write_json(json_path, facts);
}

}  // namespace

void add_info(CLI::App& app) {
  CLI::App* command = app.add_subcommand("info", "Print version, CPU features and backends");
  command->footer("Example:\n  msa info --json machine.json");
  auto json_path = std::make_shared<std::string>();
  command->add_option("--json", *json_path, "Write the same facts as JSON")->type_name("FILE");
  command->callback([json_path] { run(*json_path); });
}

}  // namespace openmsa::cli
