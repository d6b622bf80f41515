// Functions that kernels call and that tests call on the host.
#pragma once

#ifdef __CUDACC__
#define OPENMSA_DEVICE __device__ __forceinline__
#else
#define OPENMSA_DEVICE inline
#endif
