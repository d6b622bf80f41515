#include "msa/bench/options.h"

#include "msa/number.h"

namespace openmsa::cli {

Config m3_geometry() {
  Config config = openmsa::config();
  config.num_heads_q = 64;
  config.num_heads_kv = 4;
  config.head_dim = config.index_dim = 128;
  return config;
}

nlohmann::ordered_json geometry_to_json(const Config& config) {
  nlohmann::ordered_json geometry = nlohmann::ordered_json::object();
  for (const GeometryOption& number : kGeometry) geometry[number.name] = config.*number.member;
  return geometry;
}

int BenchOptions::num_threads() const { return threads == 0 ? default_threads() : threads; }

void BenchOptions::add_backend(CLI::App& command, const char* text) {
  command.add_option("--backend", backend, text)->check(CLI::IsMember({"cpu", "cuda"}))->capture_default_str();
}

void BenchOptions::add_dtype(CLI::App& command, const char* text) {
  auto* option = command.add_option("--dtype", dtype, text)->check(CLI::IsMember({"fp32", "bf16", "fp16"}));
  if (!dtype.empty()) option->capture_default_str();
}

void BenchOptions::add_repeats(CLI::App& command, const char* text) {
  command.add_option("--repeats", repeats, text)->check(between(1, 100000))->capture_default_str();
}

void BenchOptions::add_threads(CLI::App& command, const char* text) {
  command.add_option("--threads", threads, text)->check(between(0, 4096))->capture_default_str();
}

void BenchOptions::add_seed(CLI::App& command, const char* text) {
  command.add_option("--seed", seed, text)->capture_default_str();
}

void BenchOptions::add_json(CLI::App& command) {
  command.add_option("--json", json, "Write the figures as JSON")->type_name("FILE");
}

}  // namespace openmsa::cli
