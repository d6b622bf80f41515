#pragma once
#ifdef OPENMSA_STAMPS
namespace openmsa::cuda::sm90 {
__device__ unsigned long long g_stamp[2][1024][16][12];
__device__ unsigned g_launch[2][1024];
__device__ __forceinline__ void put_stamp(int kernel, unsigned n, int slot) {
  unsigned long long t; asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
  __stcg(&g_stamp[kernel][blockIdx.x][n % 16][slot], t);
}
}
#define STAMP_N(k) const unsigned stamp_n = __ldcg(&g_launch[k][blockIdx.x])
#define STAMP(k, n, slot) put_stamp(k, n, slot)
#define STAMP_END(k) g_launch[k][blockIdx.x] = stamp_n + 1
#define STAMP_SET(x, n) (x).stamp_n = n
#else
#define STAMP_N(k)
#define STAMP(k, n, slot)
#define STAMP_END(k)
#define STAMP_SET(x, n)
#endif
