// The tensors of a problem in a backend's memory.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <list>
#include <openmsa/openmsa.hpp>
#include <vector>

#include "msa/device/device.h"

namespace openmsa::cli {

class ProblemMemory {
 public:
  ProblemMemory(Device& device, std::uint64_t seed) : device_(device), seed_(seed) {}

  Device& device() const { return device_; }
  std::uint64_t next_seed() { return ++seed_; }

  openmsa_tensor allocate(openmsa_dtype dtype, std::initializer_list<std::int64_t> shape);
  openmsa_tensor random(openmsa_dtype dtype, std::initializer_list<std::int64_t> shape);
  openmsa_tensor upload(const std::vector<std::int32_t>& values, std::initializer_list<std::int64_t> shape);

 private:
  Device& device_;
  std::uint64_t seed_;
  std::list<DeviceBuffer> buffers_;
};

/// Those of `tensors` that `op` reads or writes; the others absent.
Tensors tensors_of(const Config& config, openmsa_op op, const Tensors& tensors);

}  // namespace openmsa::cli
