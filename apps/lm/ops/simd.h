// What hot elementwise loops need to run at the machine's vector width although the build targets the baseline x86-64.
#pragma once

#include <cstdint>
#include <cstring>

// Compiles a function once per instruction set and picks at load time. Only for leaf functions: a lambda inside one, or
// a call that is not inlined, stays at the baseline. Sanitizers do not survive the resolver that this generates.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define OPENMSA_VECTOR_CLONES __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#else
#define OPENMSA_VECTOR_CLONES
#endif

namespace openmsa::lm {

/// exp(x), relative error below 1e-6, for x clamped to [-87, 88]; branch-free, so that loops over it vectorise.
///   exp(x) = 2^n exp(r),  n = round(x / ln 2),  |r| <= ln 2 / 2
[[gnu::always_inline]] inline float vector_exp(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float n = (x * 1.44269504f + kRound) - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.3888889e-3f;
  p = p * r + 8.3333333e-3f;
  p = p * r + 4.1666667e-2f;
  p = p * r + 1.6666667e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const std::int32_t bits = (static_cast<std::int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);  // GCC 12 does not vectorise a loop with std::bit_cast
  return p * power;
}

}  // namespace openmsa::lm
