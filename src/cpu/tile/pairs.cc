// Products of bf16 in pairs on x86-64 with AVX512-BF16. Highway 1.0 has no name for the instruction, hence the
// intrinsics. It flushes subnormal numbers to zero.
#include <hwy/base.h>
#include <hwy/cache_control.h>
#include <hwy/targets.h>

#include "core/plan.h"
#include "cpu/tile/tile.h"

#if HWY_ARCH_X86_64

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

HWY_PUSH_ATTRIBUTES("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma,avx2")
namespace openmsa::cpu {
namespace {

#include "cpu/tile/product-inl.h"

using core::BFloat16;

struct Pairs {
  using Element = BFloat16;
  using Vec = __m512;
  using Side = __m512i;
  static constexpr std::int64_t kPerColumn = 2, kColumns = 16;
  static constexpr int kMaxVectors = 4;
  static constexpr int rows(int vectors) { return vectors == 1 ? 12 : 24 / vectors; }

  static HWY_INLINE Side left(const BFloat16* p) {
    std::int32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return _mm512_set1_epi32(pair);
  }
  static HWY_INLINE Side right(const BFloat16* p) { return _mm512_loadu_si512(p); }
  static HWY_INLINE Vec mul_add(Side left, Side right, Vec sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(left), reinterpret_cast<__m512bh>(right));
  }
  static HWY_INLINE Vec zero() { return _mm512_setzero_ps(); }
  static HWY_INLINE Vec lowest() { return _mm512_set1_ps(-std::numeric_limits<float>::infinity()); }
  static HWY_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
  static HWY_INLINE void store(Vec v, float* p) { _mm512_storeu_ps(p, v); }
  static HWY_INLINE Vec multiply(Vec v, float scale) { return _mm512_mul_ps(v, _mm512_set1_ps(scale)); }
  static HWY_INLINE Vec max_number(Vec a, Vec b) { return _mm512_maskz_max_ps(0xffff, b, a); }  // of a NaN and a: a
};

void matmul(std::int64_t m, std::int64_t n, std::int64_t pairs, OperandOf<BFloat16> a, const BFloat16* b,
            std::int64_t ldb, float* c, std::int64_t ldc, float scale, bool accumulate) {
  matmul_tile<Pairs>(m, n, pairs, a, b, ldb, c, ldc, scale, accumulate);
}

void matmul_column_max(std::int64_t m, std::int64_t n, std::int64_t pairs, OperandOf<BFloat16> a, const BFloat16* b,
                       std::int64_t ldb, float* top) {
  matmul_column_max_tile<Pairs>(m, n, pairs, a, b, ldb, top);
}

/// The numbers of the lower half and those of the upper half, by turns.
HWY_INLINE __m512i interleave(__m512i halves) {
  alignas(64) static constexpr std::uint16_t kOrder[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                           21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                           11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), halves);
}

HWY_INLINE __m256i load_half(const BFloat16* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

void pair_rows(const BFloat16* even, const BFloat16* odd, std::int64_t n, BFloat16* out) {
  for (std::int64_t j = 0; j < n; j += 16) {
    const __m256i second = odd == nullptr ? _mm256_setzero_si256() : load_half(odd + j);
    const __m512i first = _mm512_castsi256_si512(load_half(even + j));
    const __m512i halves = _mm512_maskz_inserti64x4(0xff, first, second, 1);  // GCC 12 warns of the form without a mask
    _mm512_storeu_si512(out + 2 * j, interleave(halves));
  }
}

void pair_tile(float* tile, std::int64_t ld, std::int64_t m, std::int64_t n) {
  for (std::int64_t i = 0; i < m; i += 2) {
    const float *even = tile + i * ld, *odd = even + ld;
    float* out = tile + i / 2 * ld;
    for (std::int64_t j = 0; j < n; j += 16) {
      const __m512 second = i + 1 < m ? _mm512_loadu_ps(odd + j) : _mm512_setzero_ps();
      const __m512bh halves = _mm512_cvtne2ps_pbh(second, _mm512_loadu_ps(even + j));
      _mm512_storeu_si512(out + j, interleave(reinterpret_cast<__m512i>(halves)));
    }
  }
}

}  // namespace
}  // namespace openmsa::cpu
HWY_POP_ATTRIBUTES

#endif

namespace openmsa::cpu {

const PairOps* pair_ops() {
#if HWY_ARCH_X86_64
  static constexpr PairOps kOps = {matmul, matmul_column_max, pair_rows, pair_tile};
  static const bool is_supported = (hwy::SupportedTargets() & HWY_AVX3) != 0 && __builtin_cpu_supports("avx512bf16");
  return is_supported ? &kOps : nullptr;
#else
  return nullptr;
#endif
}

}  // namespace openmsa::cpu
