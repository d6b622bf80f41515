// The machine itself: what it runs, and that it finds the faults that it is for.
#include "cuda/emulation/machine.h"

#include <gmock/gmock.h>

#include <stdexcept>

#include "cuda/sm80/ptx/async_copy.cuh"
#include "cuda/sm80/ptx/matrix.cuh"
#include "cuda/sm80/ptx/turn.cuh"

OPENMSA_EMULATE_SHARED(openmsa::emulation::of_test, shared)

namespace openmsa::emulation {
namespace {

using namespace cuda::sm80;

constexpr unsigned int kThreads = 64;

float* numbers() { return reinterpret_cast<float*>(of_test::shared); }

/// What two CTAs of 64 threads leave behind; the machine begins the one with its first thread, the other with its last.
template <class Kernel>
bool gives(float expected, const Kernel& kernel) {
  float results[2][kThreads] = {};
  run_grid({2, 1, 1}, kThreads, sizeof(float) * 4 * kThreads,
           [&] { results[blockIdx.x][threadIdx.x] = kernel(static_cast<int>(threadIdx.x)); });
  bool all = true;
  for (const auto& cta : results) {
    for (const float x : cta) all &= x == expected;
  }
  return all;
}

std::string failure(std::size_t shared_bytes, const std::function<void()>& kernel) {
  try {
    run_grid({1, 1, 1}, kThreads, shared_bytes, kernel);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

/// Every thread reads what another warp has written.
TEST(Machine, FindsAMissingBarrier) {
  const auto exchange = [](bool waits) {
    return [=](int thread) {
      numbers()[thread] = 1;
      if (waits) __syncthreads();
      return numbers()[(thread + 32) % kThreads];
    };
  };
  EXPECT_TRUE(gives(1, exchange(true)));
  EXPECT_FALSE(gives(1, exchange(false)));
}

TEST(Machine, FindsACopyThatNobodyWaitsFor) {
  static const float source[4] = {1, 1, 1, 1};
  const auto copy = [](bool waits) {
    return [=](int thread) {
      async_copy_16(shared_address(numbers() + 4 * thread), source, true);
      async_commit();
      async_copy_16(shared_address(numbers()), source, false);
      async_commit();
      if (waits) async_wait<1>();
      return numbers()[4 * thread + 3];
    };
  };
  const auto not_of_first = [](auto kernel) { return [=](int thread) { return thread == 0 ? 1 : kernel(thread); }; };
  EXPECT_TRUE(gives(1, not_of_first(copy(true))));
  EXPECT_FALSE(gives(1, not_of_first(copy(false))));
}

TEST(Machine, BeginsWithNanInSharedMemory) {
  EXPECT_TRUE(gives(1, [](int thread) { return std::isnan(numbers()[thread]) ? 1 : 0; }));
}

TEST(Machine, RunsWarpInstructions) {
  EXPECT_TRUE(gives(31 * 16, [](int thread) {
    float sum = static_cast<float>(thread % 32);
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
    return sum;
  }));
  EXPECT_TRUE(gives(1, [](int thread) { return __ballot_sync(~0u, thread % 2) == 0xaaaaaaaau ? 1.f : 0.f; }));
  EXPECT_TRUE(gives(1, [](int thread) { return __syncthreads_or(thread == 40) != 0 ? 1.f : 0.f; }));
}

/// c = a b with a[m][k] = m + 16 k and b[k][n] = (k == n): by the tables of the PTX ISA, not by those of matrix.cuh.
TEST(Machine, MultipliesFragments) {
  EXPECT_TRUE(gives(1, [](int thread) {
    const int g = thread % 32 / 4, t = thread % 4;
    const auto two = [](float x, float y) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
      return __builtin_bit_cast(std::uint32_t, pair);
    };
    const auto a_at = [](int m, int k) { return static_cast<float>(m + 16 * k); };
    const auto of_a = [&](int m, int k) { return two(a_at(m, k), a_at(m, k + 1)); };
    const std::uint32_t a[4] = {of_a(g, 2 * t), of_a(g + 8, 2 * t), of_a(g, 2 * t + 8), of_a(g + 8, 2 * t + 8)};
    float c[4] = {};
    multiply_add<__nv_bfloat16>(c, a, two(2 * t == g, 2 * t + 1 == g), 0);
    const bool is_right = c[0] == a_at(g, 2 * t) && c[1] == a_at(g, 2 * t + 1) && c[2] == a_at(g + 8, 2 * t) &&
                          c[3] == a_at(g + 8, 2 * t + 1);
    return is_right ? 1.f : 0.f;
  }));
}

TEST(Machine, SaysWhatIsWrongWithAKernel) {
  EXPECT_EQ(failure(0,
                    [] {
                      if (threadIdx.x == 5) __syncwarp();
                    }),
            "");  // the others have ended
  EXPECT_EQ(failure(0,
                    [] {
                      if (threadIdx.x >= 40) __syncwarp();
                      if (threadIdx.x < 40) __syncthreads();
                    }),
            "threads wait for ever: 40 for the CTA, 24 of warp 1 in __syncwarp");
  EXPECT_THAT(failure(0,
                      [] {
                        if (threadIdx.x % 2 == 0) __syncwarp();
                        __shfl_sync(~0u, 1, 0);
                      }),
              testing::StartsWith("lanes of a warp meet in "));
  EXPECT_EQ(failure(16, [] { of_test::shared[threadIdx.x] = 0; }), "written past shared memory");
  EXPECT_EQ(failure(100 << 10, [] {}), "more shared memory than a CTA may have");
  static std::int32_t ended = 0;
  EXPECT_EQ(failure(0, [] { wait_for_turn(&ended, 1); }), "a CTA waits for the turn of a later one");
}

}  // namespace
}  // namespace openmsa::emulation
