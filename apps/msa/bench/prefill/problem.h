// A prefill on random inputs in a backend's memory.
#pragma once

#include <cstdint>
#include <openmsa/openmsa.hpp>
#include <vector>

#include "msa/bench/prefill/work.h"
#include "msa/bench/problem_memory.h"

namespace openmsa::cli {

class PrefillProblem {
 public:
  PrefillProblem(Device& device, const Config& config, std::vector<PrefillSequence> sequences, std::uint64_t seed);

  /// Of the tensors of such a problem.
  static std::uint64_t bytes(const Config& config, const std::vector<PrefillSequence>& sequences);

  const Config& config() const { return config_; }
  const std::vector<PrefillSequence>& sequences() const { return sequences_; }
  Device& device() const { return memory_.device(); }

  /// The tensors that `op` takes, in the backend's memory.
  Tensors tensors(openmsa_op op) const;
  void set_selection(const std::vector<std::int32_t>& topk_indices);

 private:
  openmsa_tensor prefix_sums(std::int64_t PrefillSequence::*length);

  ProblemMemory memory_;
  Config config_;
  std::vector<PrefillSequence> sequences_;
  Tensors data_ = openmsa::tensors();
};

/// Shapes and capacities for `sequences`; the rest as in `config`.
Config fit_to(Config config, const std::vector<PrefillSequence>& sequences);

}  // namespace openmsa::cli
