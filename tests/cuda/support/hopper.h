// Tests that need a Hopper GPU, and say so where there is none.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

namespace openmsa::test {

inline bool has_hopper() {
  int device = 0, major = 0, minor = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return false;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return major == 9 && minor == 0;
}

class OnHopper : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_hopper()) GTEST_SKIP() << "no Hopper GPU (compute capability 9.0) can be used here";
  }
};

template <class Parameter>
class OnHopperWith : public OnHopper, public testing::WithParamInterface<Parameter> {};

}  // namespace openmsa::test
