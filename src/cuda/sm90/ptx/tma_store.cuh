// What CuTe 4.2 lacks: a store through the copy engine with a hint for the L2 cache.
#pragma once

#include <cute/arch/copy_sm90_tma.hpp>

namespace openmsa::cuda::sm90 {

/// cp.async.bulk.tensor (global <- shared), 4 dimensions; `hint` is a cute::TMA::CacheHintSm90.
__device__ __forceinline__ void tma_store_4d(const CUtensorMap& map, cute::TMA::CacheHintSm90 hint, const void* smem,
                                             int c0, int c1, int c2, int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group.L2::cache_hint [%0, {%2, %3, %4, %5}], [%1], %6;\n" ::"l"(
          &map),
      "r"(cute::cast_smem_ptr_to_uint(smem)), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "l"(static_cast<std::uint64_t>(hint))
      : "memory");
}

}  // namespace openmsa::cuda::sm90
