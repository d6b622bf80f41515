// A CPU that runs CUDA kernels, for tests: the threads of a CTA are fibers of one host thread, and what a warp or a CTA
// does together happens when the last of its threads has come. CTAs run one after the other.
//
// Made to find faults. A warp runs until it has to wait for another, so that one which does not wait reads what is not
// there yet; every other CTA begins with its last thread in place of its first. Shared memory begins as NaN. A copy that
// nobody waits for arrives when a thread waits for it and no sooner; until then its place holds NaN.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace openmsa::emulation {

inline constexpr int kWarpLanes = 32;
/// What a CTA may have: as much as on the smallest GPUs that the kernels are for.
inline constexpr std::size_t kSharedBytes = 99 << 10;

struct Index {
  unsigned int x, y, z;
};

/// Runs body() in every thread of every CTA. Throws std::runtime_error with what is wrong with the kernel: threads that
/// wait for ever, lanes that meet in different instructions, too much shared memory.
void run_grid(Index ctas, unsigned int threads, std::size_t shared_bytes, const std::function<void()>& body);

/// Ends the kernel: run_grid throws.
[[noreturn]] void fail(const std::string& why);

/// What a warp does together: gets what each lane brought, null for those that have ended.
using Together = void (*)(void* const (&lanes)[kWarpLanes]);

/// Waits until all lanes of the warp have called it, with the same `what`; the last one calls together().
void meet_warp(const char* what, void* mine, Together together);

/// Waits for all threads of the CTA; whether any brought true.
bool meet_cta(bool mine);

/// Asynchronous copies of the running thread (cp.async). `exists`: else zeros.
void start_copy(std::uint32_t shared, const void* global, std::size_t bytes, bool exists);
void close_copies();
void wait_for_copies(std::size_t groups_left);

/// Shared memory as 32-bit addresses.
std::uint32_t shared_address(const void* pointer);
void* shared_pointer(std::uint32_t address);

/// Dynamic shared memory, which kernels declare as an array of one of some names; at namespace scope.
struct DynamicShared {
  explicit DynamicShared(char* (*memory)());
};
#define OPENMSA_EMULATE_SHARED(space, name)                                      \
  namespace space {                                                              \
  alignas(1024) thread_local char name[openmsa::emulation::kSharedBytes + 1024]; \
  const openmsa::emulation::DynamicShared registered([] { return name + 0; });   \
  }

}  // namespace openmsa::emulation

/// Where the running thread is.
inline openmsa::emulation::Index threadIdx, blockIdx, blockDim, gridDim;
