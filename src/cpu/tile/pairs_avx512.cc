// Products of bf16 in pairs in the vectors of x86-64 with AVX512-BF16 and AVX512-VBMI. Highway 1.0 has no name for the
// product's instruction, hence the intrinsics. It flushes subnormal numbers to zero.
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

#if HWY_COMPILER_GCC_ACTUAL  // its intrinsics begin with a vector of nothing in particular where all lanes are written
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

HWY_PUSH_ATTRIBUTES("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,fma,avx2")
namespace openmsa::cpu {
namespace {

#include "cpu/tile/pairs-inl.h"

using core::BFloat16;

/// 128 bits at `offset` of row i and of every fourth row after it.
template <class AnyRows>
HWY_INLINE __m512i every_fourth(const AnyRows& rows, std::int64_t i, std::int64_t offset) {
  const auto quarter = [](const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); };
  __m512i result = _mm512_castsi128_si512(quarter(rows.at(i) + offset));
  result = _mm512_inserti32x4(result, quarter(rows.at(i + 4) + offset), 1);
  result = _mm512_inserti32x4(result, quarter(rows.at(i + 8) + offset), 2);
  return _mm512_inserti32x4(result, quarter(rows.at(i + 12) + offset), 3);
}

/// Four times 32 bits at `offset` of 16 rows, each row in its lane.
template <class AnyRows>
HWY_INLINE void transpose_rows(const AnyRows& rows, std::int64_t offset, __m512i (&out)[4]) {
  const __m512i row0 = every_fourth(rows, 0, offset), row1 = every_fourth(rows, 1, offset);
  const __m512i row2 = every_fourth(rows, 2, offset), row3 = every_fourth(rows, 3, offset);
  const __m512i low02 = _mm512_unpacklo_epi32(row0, row2), low13 = _mm512_unpacklo_epi32(row1, row3);
  const __m512i high02 = _mm512_unpackhi_epi32(row0, row2), high13 = _mm512_unpackhi_epi32(row1, row3);
  out[0] = _mm512_unpacklo_epi32(low02, low13);
  out[1] = _mm512_unpackhi_epi32(low02, low13);
  out[2] = _mm512_unpacklo_epi32(high02, high13);
  out[3] = _mm512_unpackhi_epi32(high02, high13);
}

struct Pairs {
  using Element = BFloat16;
  using RowElement = BFloat16;
  using Vec = __m512;
  using Side = __m512i;
  static constexpr std::int64_t kPerColumn = 2, kColumns = 16;
  static constexpr int kMaxVectors = 4, kLoadedSteps = 4;
  static constexpr int rows(int vectors) { return vectors == 1 ? 12 : 24 / vectors; }

  static HWY_INLINE Side left(const BFloat16* p) {
    std::int32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return _mm512_set1_epi32(pair);
  }
  static HWY_INLINE Side right(const BFloat16* p) { return _mm512_loadu_si512(p); }
  template <class AnyRows>
  static HWY_INLINE void load_steps(const AnyRows& rows, std::int64_t p, Side (&steps)[4]) {
    transpose_rows(rows, 2 * p, steps);
  }
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

/// Rows that are e4m3.
struct PairsOfE4M3 : Pairs {
  using RowElement = core::Float8E4M3;
  static constexpr int kLoadedSteps = 8;

  template <class AnyRows>
  static HWY_INLINE void load_steps(const AnyRows& rows, std::int64_t p, Side (&steps)[8]) {
    const Float8Table table;
    const __m512i first_pairs =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
    __m512i fours[4];  // channels of 16 keys
    transpose_rows(rows, 2 * p, fours);
    for (int i = 0; i < 4; ++i) {
      table.widen(_mm512_shuffle_epi8(fours[i], first_pairs), steps[2 * i], steps[2 * i + 1]);
    }
  }
};

void matmul(std::int64_t m, std::int64_t n, std::int64_t pairs, OperandOf<BFloat16> a, const BFloat16* b,
            std::int64_t ldb, float* c, std::int64_t ldc, float scale, bool accumulate) {
  matmul_tile<Pairs>(m, n, pairs, a, b, ldb, c, ldc, scale, accumulate);
}

void matmul_column_max(std::int64_t m, std::int64_t n, std::int64_t pairs, OperandOf<BFloat16> a, const BFloat16* b,
                       std::int64_t ldb, float* top) {
  matmul_column_max_tile<Pairs>(m, n, pairs, a, b, ldb, top);
}

void row_products(std::int64_t m, std::int64_t n, std::int64_t pairs, OperandOf<BFloat16> a, const BFloat16* q,
                  std::int64_t ldq, float* s, std::int64_t lds, float scale) {
  row_products_tile<Pairs>(m, n, pairs, a, q, ldq, s, lds, scale);
}

void row_products_e4m3(std::int64_t m, std::int64_t n, std::int64_t pairs, OperandOf<core::Float8E4M3> a,
                       const BFloat16* q, std::int64_t ldq, float* s, std::int64_t lds, float scale) {
  row_products_tile<PairsOfE4M3>(m, n, pairs, a, q, ldq, s, lds, scale);
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
  static constexpr PairOps kOps = {.name = "AVX512_BF16",
                                   .speed = 2,
                                   .row_speed = 2,
                                   .rows_have_same_bits = true,
                                   .matmul = matmul,
                                   .matmul_column_max = matmul_column_max,
                                   .row_products = row_products,
                                   .row_products_e4m3 = row_products_e4m3,
                                   .pair_rows = pair_rows,
                                   .pair_rows_e4m3 = pair_rows_e4m3,
                                   .round_columns = round_columns,
                                   .round_rows = round_rows,
                                   .widen_e4m3 = widen_e4m3};
  static const bool is_supported = (hwy::SupportedTargets() & HWY_AVX3) != 0 && __builtin_cpu_supports("avx512bf16") &&
                                   __builtin_cpu_supports("avx512vbmi");
  return is_supported ? &kOps : nullptr;
#else
  return nullptr;
#endif
}

}  // namespace openmsa::cpu
