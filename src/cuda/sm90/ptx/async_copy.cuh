// Copies that CuTe 4.2 lacks: plain ones through the copy engine with a hint for the L2 cache, and copies of single
// numbers that a barrier waits for. The engine spends some 40 cycles per copy beside the transfer, so that few large
// copies reach a rate that many small ones do not.
//
// PTX ISA, "Data Movement and Conversion Instructions": cp.async.bulk, cp.async, st.async; "Parallel Synchronization
// and Communication Instructions": cp.async.mbarrier.arrive.
#pragma once

#include <cute/arch/cluster_sm90.hpp>
#include <cute/arch/copy_sm90_tma.hpp>

namespace openmsa::cuda::sm90 {

using cute::TMA::CacheHintSm90;

/// cp.async.bulk, shared <- global; `bytes` and both addresses are multiples of 16, `full` counts the bytes.
__device__ __forceinline__ void bulk_load(void* smem, const void* global, int bytes, std::uint64_t* full,
                                          CacheHintSm90 hint) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;\n" ::
          "r"(cute::cast_smem_ptr_to_uint(smem)),
      "l"(global), "r"(bytes), "r"(cute::cast_smem_ptr_to_uint(full)), "l"(static_cast<std::uint64_t>(hint))
      : "memory");
}

/// cp.async.bulk, global <- shared, in the current bulk group.
__device__ __forceinline__ void bulk_store(void* global, const void* smem, int bytes, CacheHintSm90 hint) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint [%0], [%1], %2, %3;\n" ::"l"(global),
               "r"(cute::cast_smem_ptr_to_uint(smem)), "r"(bytes), "l"(static_cast<std::uint64_t>(hint))
               : "memory");
}

/// cp.reduce.async.bulk, global += shared, 32-bit integers, in the current bulk group.
__device__ __forceinline__ void bulk_add(std::int32_t* global, const std::int32_t* smem, int bytes) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.s32 [%0], [%1], %2;\n" ::"l"(global),
               "r"(cute::cast_smem_ptr_to_uint(smem)), "r"(bytes)
               : "memory");
}

/// red, global += value, without waiting for it. A thread's additions to one place keep their order.
__device__ __forceinline__ void reduce_add(float* global, float2 value) {
  asm volatile("red.relaxed.gpu.global.add.v2.f32 [%0], {%1, %2};\n" ::"l"(global), "f"(value.x), "f"(value.y)
               : "memory");
}

/// Shared memory of a CTA of the cluster, and the barrier there that counts the bytes sent to it. `local`: the same
/// places in this CTA.
struct RemoteMemory {
  std::uint32_t cta;
  const void* local_barrier;

  __device__ __forceinline__ std::uint32_t at(const void* local) const {
    return cute::set_block_rank(cute::cast_smem_ptr_to_uint(local), cta);
  }

  /// st.async of 16 or 8 bytes
  __device__ __forceinline__ void store(const void* local, float4 value) const {
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];\n" ::"r"(
            at(local)),
        "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w), "r"(at(local_barrier)));
  }
  __device__ __forceinline__ void store(const void* local, float2 value) const {
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];\n" ::"r"(at(local)),
        "f"(value.x), "f"(value.y), "r"(at(local_barrier)));
  }
};

/// cp.async, shared <- global, 4 bytes.
__device__ __forceinline__ void async_copy_4(void* smem, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;\n" ::"r"(cute::cast_smem_ptr_to_uint(smem)), "l"(global)
               : "memory");
}

/// Arrives at `barrier` when all async_copy_4 of this thread so far have.
__device__ __forceinline__ void async_arrive(std::uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];\n" ::"r"(cute::cast_smem_ptr_to_uint(barrier))
               : "memory");
}

}  // namespace openmsa::cuda::sm90
