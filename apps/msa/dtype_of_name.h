// Element types as options name them.
#pragma once

#include <openmsa/openmsa.h>

#include <string_view>

#include "core/dtype.h"

namespace openmsa::cli {

/// OPENMSA_INT32 for a name that is none of a float type.
inline openmsa_dtype dtype_of_name(std::string_view name) {
  for (openmsa_dtype dtype :
       {OPENMSA_FLOAT32, OPENMSA_BFLOAT16, OPENMSA_FLOAT16, OPENMSA_FLOAT64, OPENMSA_FLOAT8_E4M3}) {
    if (core::dtype_name(dtype) == name) return dtype;
  }
  return OPENMSA_INT32;
}

}  // namespace openmsa::cli
