// What CUDA's own names mean where the machine of machine.h runs the kernels: qualifiers, vector types, warps, atomics,
// and the runtime, whose device memory is the host's and whose streams do everything at once.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>

#include "cuda/emulation/machine.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ thread_local  // of the one host thread: it outlives a function, and may be extern

// ---- Vectors --------------------------------------------------------------------------------------------------------

struct uint2 {
  unsigned int x, y;
} __align__(8);
struct uint4 {
  unsigned int x, y, z, w;
} __align__(16);
struct int2 {
  int x, y;
} __align__(8);
struct int4 {
  int x, y, z, w;
} __align__(16);
struct longlong2 {
  long long x, y;
} __align__(16);
struct float2 {
  float x, y;
} __align__(8);
struct float4 {
  float x, y, z, w;
} __align__(16);
struct dim3 {
  unsigned int x, y, z;
  constexpr dim3(unsigned int x = 1, unsigned int y = 1, unsigned int z = 1) : x(x), y(y), z(z) {}
};
inline uint2 make_uint2(unsigned int x, unsigned int y) { return {x, y}; }
inline uint4 make_uint4(unsigned int x, unsigned int y, unsigned int z, unsigned int w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// ---- A thread -------------------------------------------------------------------------------------------------------

using std::isfinite;
using std::isnan;
template <class T, class U>
constexpr std::common_type_t<T, U> min(T a, U b) {
  return b < a ? b : a;
}
template <class T, class U>
constexpr std::common_type_t<T, U> max(T a, U b) {
  return a < b ? b : a;
}
inline float __int_as_float(int x) { return __builtin_bit_cast(float, x); }
inline float __uint_as_float(unsigned int x) { return __builtin_bit_cast(float, x); }
inline int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
inline unsigned int __float_as_uint(float x) { return __builtin_bit_cast(unsigned int, x); }
/// To the nearest integer, the range's end outside it.
inline int __float2int_rn(float x) {
  return std::isnan(x) ? 0 : static_cast<int>(std::clamp<double>(std::nearbyint(x), INT32_MIN, INT32_MAX));
}
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline int __popc(unsigned int x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned int>(x)); }
inline unsigned int __byte_perm(unsigned int low, unsigned int high, unsigned int picks) {
  const std::uint64_t bytes = std::uint64_t{high} << 32 | low;
  unsigned int result = 0;
  for (int i = 0; i < 4; ++i) result |= static_cast<unsigned int>(bytes >> 8 * (picks >> 4 * i & 7) & 0xff) << 8 * i;
  return result;
}

template <class T>
T __ldcg(const T* from) {
  return *from;
}
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
template <class T, class U>
T atomicAdd(T* to, U x) {
  if constexpr (std::is_floating_point_v<T>) return std::exchange(*to, *to + x);
  if constexpr (std::is_integral_v<T>) return __atomic_fetch_add(to, static_cast<T>(x), __ATOMIC_RELAXED);
}
template <class T>
T atomicMax(T* to, T x) {
  const T before = *to;
  *to = std::max(before, x);
  return before;
}
template <class T>
T atomicOr(T* to, T x) {
  return __atomic_fetch_or(to, x, __ATOMIC_RELAXED);
}
template <class T>
T atomicCAS(T* to, T expected, T x) {
  __atomic_compare_exchange_n(to, &expected, x, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}

// ---- A warp and a CTA -----------------------------------------------------------------------------------------------

inline void __syncthreads() { openmsa::emulation::meet_cta(false); }
inline int __syncthreads_or(int x) { return openmsa::emulation::meet_cta(x != 0); }
inline void __syncwarp() {
  openmsa::emulation::meet_warp("__syncwarp", nullptr, [](void* const(&)[32]) {});
}

namespace openmsa::emulation {

template <class T>
struct Exchange {
  T x;
  int from;
  T result;
};

/// Every lane gets the x of lane `from`; of one that has ended, NaN.
template <class T>
T shuffle(std::uint32_t mask, T x, int from) {
  if (mask != ~0u) fail("a warp's lanes meet with a mask");
  Exchange<T> mine{x, from, x};
  meet_warp("__shfl_sync", &mine, [](void* const(&lanes)[32]) {
    for (void* const lane : lanes) {
      if (lane == nullptr) continue;
      auto& to = *static_cast<Exchange<T>*>(lane);
      const void* const other = lanes[to.from & 31];
      if (other == nullptr) std::memset(&to.result, 0xff, sizeof(T));
      if (other != nullptr) to.result = static_cast<const Exchange<T>*>(other)->x;
    }
  });
  return mine.result;
}

/// Every lane gets all x put together; kLanes: a bit for each that is not 0.
enum class Reduction { kAdd, kLeast, kMost, kLanes };
template <Reduction kReduction, class T>
T reduce(std::uint32_t mask, T x) {
  if (mask != ~0u) fail("a warp's lanes meet with a mask");
  meet_warp("__reduce_sync", &x, [](void* const(&lanes)[32]) {
    bool is_first = true;
    T result = 0;
    for (int i = 0; i < kWarpLanes; ++i) {
      if (lanes[i] == nullptr) continue;
      const T other = *static_cast<const T*>(lanes[i]);
      if (kReduction == Reduction::kAdd) result += other;
      if (kReduction == Reduction::kLeast) result = is_first ? other : std::min(result, other);
      if (kReduction == Reduction::kMost) result = is_first ? other : std::max(result, other);
      if (kReduction == Reduction::kLanes) result |= static_cast<T>(other != 0 ? T{1} << i : 0);
      is_first = false;
    }
    for (void* const lane : lanes) {
      if (lane != nullptr) *static_cast<T*>(lane) = result;
    }
  });
  return x;
}

inline int lane() { return static_cast<int>(threadIdx.x % kWarpLanes); }

}  // namespace openmsa::emulation

template <class T>
T __shfl_sync(std::uint32_t mask, T x, int from) {
  return openmsa::emulation::shuffle(mask, x, from);
}
template <class T>
T __shfl_xor_sync(std::uint32_t mask, T x, int bits) {
  return openmsa::emulation::shuffle(mask, x, openmsa::emulation::lane() ^ bits);
}
template <class T>
T __shfl_up_sync(std::uint32_t mask, T x, int distance) {
  const int lane = openmsa::emulation::lane();
  return openmsa::emulation::shuffle(mask, x, lane < distance ? lane : lane - distance);
}
inline unsigned int __ballot_sync(std::uint32_t mask, int x) {
  return openmsa::emulation::reduce<openmsa::emulation::Reduction::kLanes>(mask, x != 0 ? 1u : 0u);
}
inline int __any_sync(std::uint32_t mask, int x) { return __ballot_sync(mask, x) != 0; }
inline int __all_sync(std::uint32_t mask, int x) { return __ballot_sync(mask, x == 0) == 0; }
template <class T>
T __reduce_add_sync(std::uint32_t mask, T x) {
  return openmsa::emulation::reduce<openmsa::emulation::Reduction::kAdd>(mask, x);
}
template <class T>
T __reduce_min_sync(std::uint32_t mask, T x) {
  return openmsa::emulation::reduce<openmsa::emulation::Reduction::kLeast>(mask, x);
}
template <class T>
T __reduce_max_sync(std::uint32_t mask, T x) {
  return openmsa::emulation::reduce<openmsa::emulation::Reduction::kMost>(mask, x);
}

// ---- The runtime ----------------------------------------------------------------------------------------------------

enum cudaError_t { cudaSuccess, cudaErrorNotSupported };
using cudaStream_t = struct CUstream_st*;
using cudaGraph_t = struct CUgraph_st*;
using cudaGraphExec_t = struct CUgraphExec_st*;
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaFuncAttributeNonPortableClusterSizeAllowed };
enum cudaMemcpyKind { cudaMemcpyDefault };
enum { cudaStreamNonBlocking, cudaStreamCaptureModeThreadLocal };
enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization, cudaLaunchAttributeClusterDimension };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int programmaticStreamSerializationAllowed;
    struct {
      unsigned int x, y, z;
    } clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned int numAttrs = 0;
};
struct cudaFuncAttributes {};
struct cudaDeviceProp {
  char name[32] = "an emulated GPU";
  int major = 8, minor = 6, multiProcessorCount = 3;
};

inline const char* cudaGetErrorName(cudaError_t) { return "cudaErrorNotSupported"; }
inline const char* cudaGetErrorString(cudaError_t) { return "the emulation does not have it"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) { return *properties = {}, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const cudaDeviceProp gpu;
  const int values[] = {gpu.multiProcessorCount, gpu.major, gpu.minor};
  return *value = values[attribute], cudaSuccess;
}
inline cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* memory) { return std::free(memory), cudaSuccess; }
inline cudaError_t cudaMemset(void* to, int byte, std::size_t bytes) {
  return std::memset(to, byte, bytes), cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int byte, std::size_t bytes, cudaStream_t) {
  return cudaMemset(to, byte, bytes);
}
inline cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind) {
  return std::memcpy(to, from, bytes), cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, int) { return *stream = nullptr, cudaSuccess; }
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamBeginCapture(cudaStream_t, int) { return cudaErrorNotSupported; }
inline cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t*) { return cudaErrorNotSupported; }
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t*, cudaGraph_t, int) { return cudaErrorNotSupported; }
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) { return cudaErrorNotSupported; }
inline cudaError_t cudaGraphDestroy(cudaGraph_t) { return cudaSuccess; }
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return cudaSuccess; }
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel*) {
  return cudaSuccess;
}
inline cudaError_t cudaOccupancyMaxActiveClusters(int*, const void*, const cudaLaunchConfig_t*) {
  return cudaErrorNotSupported;
}

template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args... args) {
  const dim3& ctas = config->gridDim;
  openmsa::emulation::run_grid({ctas.x, ctas.y, ctas.z}, config->blockDim.x, config->dynamicSmemBytes,
                               [&] { kernel(args...); });
  return cudaSuccess;
}
