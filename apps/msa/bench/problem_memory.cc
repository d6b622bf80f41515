#include "msa/bench/problem_memory.h"

#include <functional>
#include <numeric>

#include "judge/random_fill.h"

namespace openmsa::cli {

openmsa_tensor ProblemMemory::allocate(openmsa_dtype dtype, std::initializer_list<std::int64_t> shape) {
  const std::int64_t count = std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
  void* memory = buffers_.emplace_back(device_, static_cast<std::size_t>(count) * openmsa_dtype_bytes(dtype)).data();
  return openmsa_contiguous(memory, dtype, static_cast<std::int32_t>(shape.size()), shape.begin());
}

openmsa_tensor ProblemMemory::random(openmsa_dtype dtype, std::initializer_list<std::int64_t> shape) {
  const openmsa_tensor tensor = allocate(dtype, shape);
  judge::fill_randomly(device_.copier(), tensor, next_seed());
  return tensor;
}

openmsa_tensor ProblemMemory::upload(const std::vector<std::int32_t>& values,
                                     std::initializer_list<std::int64_t> shape) {
  const openmsa_tensor tensor = allocate(OPENMSA_INT32, shape);
  device_.copy(tensor.data, values.data(), values.size() * sizeof(std::int32_t));
  return tensor;
}

Tensors tensors_of(const Config& config, openmsa_op op, const Tensors& tensors) {
  Tensors result = openmsa::tensors();
  for (const char* name : tensor_names()) {
    if (use_of(config, op, name) != 0) at(result, name) = at(tensors, name);
  }
  return result;
}

}  // namespace openmsa::cli
