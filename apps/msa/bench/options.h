// The options that the measurements of msa bench have in common: the layer's geometry, where it runs, how often.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <openmsa/openmsa.hpp>
#include <string>

namespace openmsa::cli {

/// A number of a layer's geometry, which decode and prefill take as an option and report.
struct GeometryOption {
  const char* option;
  std::int32_t Config::*member;
  const char* name;  // in JSON
  const char* text;
};
inline constexpr GeometryOption kGeometry[] = {
    {"--num-heads-q", &Config::num_heads_q, "num_heads_q", "Query heads"},
    {"--num-heads-kv", &Config::num_heads_kv, "num_heads_kv", "KV heads"},
    {"--head-dim", &Config::head_dim, "head_dim", "Channels per head"},
    {"--index-dim", &Config::index_dim, "index_dim", "Channels of the index branch"},
    {"--block-size", &Config::block_size, "block_size", "Keys per kv_block"},
    {"--topk", &Config::topk, "topk", "kv_blocks kept per query and KV head"},
};

/// One layer of MiniMax-M3.
Config m3_geometry();

/// {"num_heads_q", "num_heads_kv", "head_dim", "index_dim", "block_size", "topk"}
nlohmann::ordered_json geometry_to_json(const Config& config);

struct BenchOptions {
  std::string backend = "cpu";
  std::string dtype;  // empty: the backend's usual one
  int repeats = 5;
  int threads = 0;
  std::uint64_t seed = 1;
  std::string json;

  bool is_cuda() const { return backend == "cuda"; }
  openmsa_backend backend_id() const { return is_cuda() ? OPENMSA_BACKEND_CUDA : OPENMSA_BACKEND_CPU; }
  /// Threads that a run on the host uses.
  int num_threads() const;

  // Each adds one option to a command; the help shows the value that it has before.
  void add_backend(CLI::App& command, const char* text = "cpu (with dense attention beside it) or cuda");
  void add_dtype(CLI::App& command, const char* text);
  void add_repeats(CLI::App& command, const char* text = "Measurements of each figure");
  void add_threads(CLI::App& command, const char* text = "Threads of the cpu backend; 0: one per core");
  void add_seed(CLI::App& command, const char* text = "Of the random inputs");
  void add_json(CLI::App& command);
};

}  // namespace openmsa::cli
