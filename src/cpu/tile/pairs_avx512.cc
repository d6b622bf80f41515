// Products of bf16 in pairs in the vectors of x86-64 with AVX512-BF16. Highway 1.0 has no name for the instruction, hence
// the intrinsics. It flushes subnormal numbers to zero.
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

#include "cpu/tile/pairs-inl.h"
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

/// memory[pair][column].
OperandOf<BFloat16> round_columns(const float* tile, std::int64_t ld, std::int64_t m, std::int64_t n,
                                  const float* factors, BFloat16* memory) {
  BFloat16* out = memory;
  for (std::int64_t i = 0; i < m; i += 2, out += 2 * n) {
    for (std::int64_t j = 0; j < n; j += 16) {
      _mm512_storeu_si512(out + 2 * j, round_pairs(tile, ld, m, factors, i, j));
    }
  }
  std::fill(out, memory + pad_steps(m) * n, BFloat16{0});
  return {memory, 2, 2 * n};
}

}  // namespace
}  // namespace openmsa::cpu
HWY_POP_ATTRIBUTES

#endif

namespace openmsa::cpu {

const PairOps* vector_pair_ops() {
#if HWY_ARCH_X86_64
  static constexpr PairOps kOps = {"AVX512_BF16", 2,          matmul,    matmul_column_max, pair_rows,
                                   round_columns, round_rows, widen_e4m3};
  static const bool is_supported = (hwy::SupportedTargets() & HWY_AVX3) != 0 && __builtin_cpu_supports("avx512bf16");
  return is_supported ? &kOps : nullptr;
#else
  return nullptr;
#endif
}

}  // namespace openmsa::cpu
