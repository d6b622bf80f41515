// Element types in device memory, as CUTLASS names them.
#pragma once

#include <cutlass/numeric_types.h>
#include <openmsa/openmsa.h>

namespace openmsa::cuda::sm90 {

template <openmsa_dtype kDtype>
struct ElementOf;
template <>
struct ElementOf<OPENMSA_BFLOAT16> {
  using type = cutlass::bfloat16_t;
};
template <>
struct ElementOf<OPENMSA_FLOAT16> {
  using type = cutlass::half_t;
};
template <>
struct ElementOf<OPENMSA_FLOAT8_E4M3> {
  using type = cutlass::float_e4m3_t;
};

template <openmsa_dtype kDtype>
using Element = typename ElementOf<kDtype>::type;

}  // namespace openmsa::cuda::sm90
