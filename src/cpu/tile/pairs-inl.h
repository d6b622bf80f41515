// Pairs of bf16 numbers from two rows, in vectors of AVX-512. Included by the files that multiply pairs, inside their
// namespace and their target attributes.

#include "cpu/tile/product-inl.h"

/// The numbers of the lower half and those of the upper half, by turns.
HWY_INLINE __m512i interleave(__m512i halves) {
  alignas(64) static constexpr std::uint16_t kOrder[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                           21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                           11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), halves);
}

/// 16 columns from `column` on of rows i and i + 1 of a tile of m rows, each times its factor, rounded to bf16.
HWY_INLINE __m512i round_pairs(const float* tile, std::int64_t ld, std::int64_t m, const float* factors, std::int64_t i,
                               std::int64_t column) {
  const auto row = [&](std::int64_t at) {
    if (at >= m) return _mm512_setzero_ps();
    const __m512 values = _mm512_loadu_ps(tile + at * ld + column);
    return factors == nullptr ? values : _mm512_mul_ps(values, _mm512_set1_ps(factors[at]));
  };
  return interleave(reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(row(i + 1), row(i))));
}

HWY_INLINE __m256i load_half(const core::BFloat16* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

HWY_INLINE void pair_two(const core::BFloat16* even, const core::BFloat16* odd, std::int64_t n, core::BFloat16* out) {
  for (std::int64_t j = 0; j < n; j += 16) {
    const __m256i second = odd == nullptr ? _mm256_setzero_si256() : load_half(odd + j);
    const __m512i first = _mm512_castsi256_si512(load_half(even + j));
    const __m512i halves = _mm512_maskz_inserti64x4(0xff, first, second, 1);  // GCC 12 warns of the form without a mask
    _mm512_storeu_si512(out + 2 * j, interleave(halves));
  }
}

inline void pair_rows(const core::BFloat16* in, std::int64_t ld, std::int64_t m, std::int64_t n, core::BFloat16* out,
                      const Ahead& ahead) {
  Prefetcher prefetcher(ahead, m / 2);
  std::int64_t i = 0;
  for (; i + 2 <= m; i += 2) {
    prefetcher.step();
    pair_two(in + i * ld, in + (i + 1) * ld, n, out + i * n);
  }
  if (i < m) pair_two(in + i * ld, nullptr, n, out + i * n);
}

/// memory[row][column].
inline OperandOf<core::BFloat16> round_rows(const float* tile, std::int64_t ld, std::int64_t m, std::int64_t n,
                                            core::BFloat16* memory) {
  const std::int64_t row = pad_steps(n);
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < row; j += 32) {
      const auto some = [&](std::int64_t first) {  // 16 columns, those past n as 0
        const std::int64_t count = std::clamp<std::int64_t>(n - first, 0, 16);
        return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), tile + i * ld + first);
      };
      const __m512bh rounded = _mm512_cvtne2ps_pbh(some(j + 16), some(j));
      _mm512_storeu_si512(memory + i * row + j, reinterpret_cast<__m512i>(rounded));
    }
  }
  return {memory, row, 2};
}

/// The upper bytes of the 128 e4m3 numbers without a sign as bf16, and the lower ones.
struct Float8Bytes {
  constexpr Float8Bytes() {
    constexpr int kSubnormal[8] = {0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60};  // times 2^-9
    for (int code = 0; code < 128; ++code) {
      const int normal = (code << 4) + (120 << 7);  // the exponent, 4 bits with bias 7, in bf16's place and bias
      const int number = code < 8 ? kSubnormal[code] : code == 0x7f ? 0x7fc0 : normal;
      upper[code] = static_cast<std::uint8_t>(number >> 8);
      lower[code] = static_cast<std::uint8_t>(number);
    }
  }
  alignas(64) std::uint8_t upper[128] = {};
  alignas(64) std::uint8_t lower[128] = {};
};

/// Numbers in e4m3 to bf16: a byte's lower 7 bits are looked up.
struct Float8Table {
  HWY_INLINE Float8Table() {
    static constexpr Float8Bytes kBytes;
    upper = _mm512_load_si512(kBytes.upper);
    upper_rest = _mm512_load_si512(kBytes.upper + 64);
    lower = _mm512_load_si512(kBytes.lower);
    lower_rest = _mm512_load_si512(kBytes.lower + 64);
  }
  /// Of each 128 bits the lower 8 numbers to `first`, the others to `second`.
  HWY_INLINE void widen(__m512i codes, __m512i& first, __m512i& second) const {
    const __m512i sign = _mm512_and_si512(codes, _mm512_set1_epi8(static_cast<char>(0x80)));
    const __m512i high = _mm512_or_si512(_mm512_permutex2var_epi8(upper, codes, upper_rest), sign);
    const __m512i low = _mm512_permutex2var_epi8(lower, codes, lower_rest);
    first = _mm512_unpacklo_epi8(low, high);
    second = _mm512_unpackhi_epi8(low, high);
  }
  __m512i upper, upper_rest, lower, lower_rest;
};

/// Up to 64 numbers of a row from column j on; 0 past its end.
HWY_INLINE __m512i load_codes(const core::Float8E4M3* row, std::int64_t j, std::int64_t n) {
  return _mm512_maskz_loadu_epi8(n - j > 32 ? ~__mmask64{0} : 0xffffffff, row + j);
}

inline void widen_e4m3(const core::Float8E4M3* from, std::int64_t ld, std::int64_t m, std::int64_t n,
                       core::BFloat16* to, const Ahead& ahead) {
  Prefetcher prefetcher(ahead, m);
  const Float8Table table;
  const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
  for (; m > 0; --m, from += ld, to += n) {
    prefetcher.step();
    for (std::int64_t j = 0; j < n; j += 64) {
      __m512i first, second;
      table.widen(_mm512_maskz_permutexvar_epi64(0xff, order, load_codes(from, j, n)), first, second);
      _mm512_storeu_si512(to + j, first);
      if (n - j > 32) _mm512_storeu_si512(to + j + 32, second);
    }
  }
}

inline void pair_rows_e4m3(const core::Float8E4M3* in, std::int64_t ld, std::int64_t m, std::int64_t n,
                           core::BFloat16* out, const Ahead& ahead) {
  Prefetcher prefetcher(ahead, core::ceil_div(m, 2));
  const Float8Table table;
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  for (std::int64_t i = 0; i < m; i += 2, in += 2 * ld, out += 2 * n) {
    prefetcher.step();
    for (std::int64_t j = 0; j < n; j += 64) {
      const auto row = [&](const core::Float8E4M3* codes) {
        return _mm512_maskz_permutexvar_epi32(0xffff, order, load_codes(codes, j, n));
      };
      const __m512i even = row(in), odd = i + 1 < m ? row(in + ld) : _mm512_setzero_si512();
      __m512i columns[4];
      table.widen(_mm512_unpacklo_epi8(even, odd), columns[0], columns[1]);
      table.widen(_mm512_unpackhi_epi8(even, odd), columns[2], columns[3]);
      for (std::int64_t c = 0; c < 4 && j + 16 * c < n; ++c) _mm512_storeu_si512(out + 2 * (j + 16 * c), columns[c]);
    }
  }
}
