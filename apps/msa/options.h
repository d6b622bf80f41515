// --backend and --threads, as every command that runs the library takes them.
#pragma once

#include <CLI/CLI.hpp>
#include <openmsa/openmsa.hpp>
#include <string>

#include "msa/number.h"

namespace openmsa::cli {

struct BackendOptions {
  std::string backend = "cpu";
  int threads = 0;

  openmsa_backend id() const {
    if (is_cuda()) return OPENMSA_BACKEND_CUDA;
    return backend == "cpu" ? OPENMSA_BACKEND_CPU : OPENMSA_BACKEND_REFERENCE;
  }
  bool is_cuda() const { return backend == "cuda"; }

  /// Threads that a run on the host uses.
  int num_threads() const { return backend != "cpu" ? 1 : threads == 0 ? default_threads() : threads; }

  void add_to(CLI::App& command) {
    command.add_option("--backend", backend, "cpu (SIMD, threads), cuda (from sm_80 on) or reference (float64, slow)")
        ->check(CLI::IsMember({"cpu", "cuda", "reference"}))
        ->capture_default_str();
    command.add_option("--threads", threads, "Threads of the cpu backend; 0: one per core")
        ->check(between(0, 4096))
        ->capture_default_str();
  }
};

}  // namespace openmsa::cli
