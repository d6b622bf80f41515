// A prefill on random inputs in a backend's memory.
#pragma once

#include <list>
#include <openmsa/openmsa.hpp>
#include <vector>

#include "msa/bench/prefill/work.h"
#include "msa/device/device.h"

namespace openmsa::cli {

class PrefillProblem {
 public:
  PrefillProblem(Device& device, const Config& config, std::vector<PrefillSequence> sequences, std::uint64_t seed);

  const Config& config() const { return config_; }
  const std::vector<PrefillSequence>& sequences() const { return sequences_; }
  Device& device() const { return device_; }

  /// The tensors that `op` takes, in the backend's memory.
  Tensors tensors(openmsa_op op) const;
  void set_selection(const std::vector<std::int32_t>& topk_indices);

  /// A copy on the host of `count` rows, from `first` on, of a tensor whose first dimension is tokens.
  std::vector<std::byte> rows(const openmsa_tensor& tensor, std::int64_t first, std::int64_t count) const;
  /// The chosen kv_blocks of a query row, all heads.
  std::vector<std::int32_t> selection(std::int64_t row) const;

 private:
  openmsa_tensor allocate(openmsa_dtype dtype, std::initializer_list<std::int64_t> shape);
  openmsa_tensor random(std::initializer_list<std::int64_t> shape);
  openmsa_tensor prefix_sums(std::int64_t PrefillSequence::*length);

  Device& device_;
  Config config_;
  std::vector<PrefillSequence> sequences_;
  std::uint64_t seed_;
  std::list<DeviceBuffer> buffers_;
  Tensors data_ = openmsa::tensors();
};

/// Shapes and capacities for `sequences`; the rest as in `config`.
Config fit_to(Config config, const std::vector<PrefillSequence>& sequences);

}  // namespace openmsa::cli
