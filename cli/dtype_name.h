// Element types as options and figures name them.
#pragma once

#include <openmsa/openmsa.h>

#include <string_view>
#include <utility>

namespace openmsa::cli {

inline constexpr std::pair<const char*, openmsa_dtype> kFloatTypes[] = {{"fp32", OPENMSA_FLOAT32},
                                                                        {"bf16", OPENMSA_BFLOAT16},
                                                                        {"fp16", OPENMSA_FLOAT16},
                                                                        {"fp64", OPENMSA_FLOAT64},
                                                                        {"e4m3", OPENMSA_FLOAT8_E4M3}};

/// OPENMSA_INT32 for a name that is none of them.
inline openmsa_dtype dtype_of_name(std::string_view name) {
  for (const auto& [text, dtype] : kFloatTypes) {
    if (text == name) return dtype;
  }
  return OPENMSA_INT32;
}

inline const char* dtype_name(openmsa_dtype dtype) {
  for (const auto& [name, value] : kFloatTypes) {
    if (value == dtype) return name;
  }
  return "int32";
}

}  // namespace openmsa::cli
