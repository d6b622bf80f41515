// How far a backend may be from float64 on the same inputs.
#pragma once

#include <openmsa/openmsa.h>

namespace openmsa::judge {

struct Tolerance {
  double o;         // ||x - reference|| / ||reference||
  double lse;       // largest |x - reference|
  double gradient;  // ||x - reference|| / ||reference||
  double score;     // of a row's largest magnitude: closer contenders for a place in the selection may be swapped
};

constexpr Tolerance tolerance(openmsa_dtype dtype) {
  switch (dtype) {
    case OPENMSA_BFLOAT16:
      return {5e-3, 1e-3, 2e-2, 1e-3};
    case OPENMSA_FLOAT16:
      return {1e-3, 1e-3, 5e-3, 1e-3};
    default:
      return {1e-6, 1e-5, 1e-5, 1e-5};
  }
}

/// The tolerance of a plan. The fp8 tensor cores keep some 13 bits of the larger sums.
constexpr Tolerance tolerance(const openmsa_config& config) {
  Tolerance result = tolerance(config.dtype);
  if (config.backend == OPENMSA_BACKEND_CUDA && config.index_dtype == OPENMSA_FLOAT8_E4M3) result.score = 4e-3;
  return result;
}

}  // namespace openmsa::judge
