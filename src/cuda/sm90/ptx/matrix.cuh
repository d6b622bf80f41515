// 8x8 matrices between the registers of a warp and shared memory (PTX ISA, "Warp Level Matrix
// Instructions": stmatrix).
#pragma once

#include <cstdint>
#include <cute/arch/util.hpp>

namespace openmsa::cuda::sm90 {

/// stmatrix.x4: lane i gives the address of row i % 8 of matrix i / 8, 16 bytes.
__device__ __forceinline__ void store_matrices(void* smem, const std::uint32_t (&packed)[4]) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(cute::cast_smem_ptr_to_uint(smem)),
      "r"(packed[0]), "r"(packed[1]), "r"(packed[2]), "r"(packed[3])
      : "memory");
}

/// stmatrix.x4.trans: lane i gives the address of row i % 8 of the transposed matrix i / 8, 16 bytes.
__device__ __forceinline__ void store_matrices_transposed(void* smem, const std::uint32_t (&packed)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(
                   cute::cast_smem_ptr_to_uint(smem)),
               "r"(packed[0]), "r"(packed[1]), "r"(packed[2]), "r"(packed[3])
               : "memory");
}

}  // namespace openmsa::cuda::sm90
