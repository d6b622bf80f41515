// Element types as options and figures name them.
#pragma once

#include <openmsa/openmsa.h>

#include <utility>

namespace openmsa::cli {

inline constexpr std::pair<const char*, openmsa_dtype> kFloatTypes[] = {
    {"fp32", OPENMSA_FLOAT32}, {"bf16", OPENMSA_BFLOAT16}, {"fp16", OPENMSA_FLOAT16}, {"fp64", OPENMSA_FLOAT64}};

inline const char* dtype_name(openmsa_dtype dtype) {
  for (const auto& [name, value] : kFloatTypes) {
    if (value == dtype) return name;
  }
  return "int32";
}

}  // namespace openmsa::cli
