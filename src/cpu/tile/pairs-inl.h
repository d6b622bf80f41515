// Pairs of bf16 numbers from two rows, in vectors of AVX-512. Included by the files that multiply pairs, inside their
// namespace and their target attributes.

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

inline void pair_rows(const core::BFloat16* even, const core::BFloat16* odd, std::int64_t n, core::BFloat16* out) {
  for (std::int64_t j = 0; j < n; j += 16) {
    const __m256i second = odd == nullptr ? _mm256_setzero_si256() : load_half(odd + j);
    const __m512i first = _mm512_castsi256_si512(load_half(even + j));
    const __m512i halves = _mm512_maskz_inserti64x4(0xff, first, second, 1);  // GCC 12 warns of the form without a mask
    _mm512_storeu_si512(out + 2 * j, interleave(halves));
  }
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

/// The exponent of e4m3, 4 bits with bias 7, moves to bf16's place and bias; subnormals are 2^-9 to 7 2^-9.
inline void widen_e4m3(const core::Float8E4M3* from, core::BFloat16* to, std::int64_t count) {
  alignas(64) static constexpr std::uint16_t kSubnormal[32] = {0,      0x3b00, 0x3b80, 0x3bc0,
                                                               0x3c00, 0x3c20, 0x3c40, 0x3c60};
  const __m512i subnormals = _mm512_load_si512(kSubnormal);
  for (std::int64_t i = 0; i < count; i += 32) {
    const __m512i codes = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i)));
    const __m512i magnitude = _mm512_and_si512(codes, _mm512_set1_epi16(0x7f));
    const __m512i sign = _mm512_slli_epi16(_mm512_and_si512(codes, _mm512_set1_epi16(0x80)), 8);
    const __m512i normal = _mm512_add_epi16(_mm512_slli_epi16(magnitude, 4), _mm512_set1_epi16(120 << 7));
    const __mmask32 is_subnormal = _mm512_cmplt_epu16_mask(magnitude, _mm512_set1_epi16(8));
    const __mmask32 is_nan = _mm512_cmpeq_epi16_mask(magnitude, _mm512_set1_epi16(0x7f));
    const __m512i number = _mm512_mask_permutexvar_epi16(normal, is_subnormal, magnitude, subnormals);
    const __m512i result = _mm512_mask_mov_epi16(number, is_nan, _mm512_set1_epi16(0x7fc0));
    _mm512_storeu_si512(to + i, _mm512_or_si512(result, sign));
  }
}
