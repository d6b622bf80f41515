// Products of bf16 in pairs in the tiles of x86-64 with AMX-BF16: eight registers of 16 rows of 64 bytes, and an
// instruction that multiplies two of them,
//
//   sums[i][j] += sum_{p < 16} (a[i][2p] b[p][2j] + a[i][2p+1] b[p][2j+1])      16 x 16 sums, 16 pairs, 16 cycles
//
// in one fixed order. A block of 32 x 32 sums takes four of the registers, its operands the other four. Subnormal numbers
// count as zero.
//
// Pairs come in whole steps of 16. Rows need not: the registers of a and of sums can have fewer, which has to be said
// before they are loaded.
#include <hwy/base.h>
#include <hwy/cache_control.h>

#include "core/plan.h"
#include "cpu/tile/tile.h"

#if HWY_ARCH_X86_64 && defined(__linux__)

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <type_traits>

HWY_PUSH_ATTRIBUTES("amx-tile,amx-bf16,avx512bf16,avx512vbmi,avx512f,avx512bw,avx512vl,avx512dq,fma,avx2")
namespace openmsa::cpu {
namespace {

#include "cpu/tile/pairs-inl.h"

using core::BFloat16;

constexpr std::int64_t kRows = 16;   // of a register: of a and of sums, or pairs of b; and columns of sums
constexpr std::int64_t kPairs = 16;  // of a row of a
constexpr std::int64_t kRowBytes = 64;
static_assert(kPairs == kPairsPerStep);

/// The compiler does not know what these instructions read: what it has kept back it must write first.
HWY_INLINE void finish_writes() { asm volatile("" ::: "memory"); }

/// The registers of this thread while a product runs. Those of the first and of the second tile of 16 rows of a have as
/// many rows as are there.
class Registers {
 public:
  Registers() = default;
  ~Registers() { _tile_release(); }
  Registers(const Registers&) = delete;
  Registers& operator=(const Registers&) = delete;

  HWY_INLINE void set_rows(std::int64_t rows) {
    if (rows == rows_) return;
    rows_ = rows;
    struct alignas(64) Config {
      std::uint8_t palette = 1;
      std::uint8_t start_row = 0;
      std::uint8_t reserved[14] = {};
      std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      std::uint8_t rows[16] = {};
    } config;
    const auto first = static_cast<std::uint8_t>(std::min(rows, kRows));
    const auto second = static_cast<std::uint8_t>(std::max<std::int64_t>(rows - kRows, 1));  // 0 would be no register
    for (const int number : {0, 1, 4}) config.rows[number] = first;
    for (const int number : {2, 3, 5}) config.rows[number] = second;
    for (const int number : {6, 7}) config.rows[number] = kRows;
    finish_writes();
    _tile_loadconfig(&config);
  }

 private:
  std::int64_t rows_ = 0;
};

// The number of a register is part of an instruction's name.
template <int kNumber>
using Number = std::integral_constant<int, kNumber>;

#define OPENMSA_FOR_REGISTER(instruction)     \
  if constexpr (kNumber == 0) instruction(0); \
  if constexpr (kNumber == 1) instruction(1); \
  if constexpr (kNumber == 2) instruction(2); \
  if constexpr (kNumber == 3) instruction(3); \
  if constexpr (kNumber == 4) instruction(4); \
  if constexpr (kNumber == 5) instruction(5); \
  if constexpr (kNumber == 6) instruction(6); \
  if constexpr (kNumber == 7) instruction(7)

template <int kNumber>
HWY_INLINE void clear() {
#define OPENMSA_CLEAR(number) _tile_zero(number)
  OPENMSA_FOR_REGISTER(OPENMSA_CLEAR);
#undef OPENMSA_CLEAR
}
template <int kNumber>
HWY_INLINE void load(const void* from, std::int64_t row_bytes) {
#define OPENMSA_LOAD(number) _tile_loadd(number, from, row_bytes)
  OPENMSA_FOR_REGISTER(OPENMSA_LOAD);
#undef OPENMSA_LOAD
}
template <int kNumber>
HWY_INLINE void store(void* to, std::int64_t row_bytes) {
#define OPENMSA_STORE(number) _tile_stored(number, to, row_bytes)
  OPENMSA_FOR_REGISTER(OPENMSA_STORE);
#undef OPENMSA_STORE
}
#undef OPENMSA_FOR_REGISTER

/// registers[row tile][column tile] += the sums from row i and column j on: two tiles of each, or one.
template <bool kTwoRows, bool kTwoColumns>
HWY_INLINE void sum_block(std::int64_t i, std::int64_t j, std::int64_t pairs, const OperandOf<BFloat16>& a,
                          const BFloat16* b, std::int64_t ldb, Prefetcher& prefetcher) {
  constexpr auto kElement = static_cast<std::int64_t>(sizeof(BFloat16));
  const BFloat16 *upper = a.data + i * a.row, *lower = upper + kRows * a.row;
  const BFloat16 *left = b + 2 * j, *right = left + 2 * kRows;
  for (std::int64_t p = 0; p < pairs; p += kPairs) {
    prefetcher.step();
    load<6>(left, ldb * kElement);
    load<4>(upper, a.row * kElement);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kTwoColumns) {
      load<7>(right, ldb * kElement);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kTwoRows) {
      load<5>(lower, a.row * kElement);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (kTwoColumns) _tile_dpbf16ps(3, 5, 7);
    }
    upper += 2 * kPairs;
    lower += 2 * kPairs;
    left += kPairs * ldb;
    right += kPairs * ldb;
  }
}

/// Calls body(two_rows, two_columns) for the first block where so many rows and columns of sums are left.
template <class Body>
HWY_INLINE void call_with_size(std::int64_t rows, std::int64_t columns, const Body& body) {
  constexpr auto yes = std::true_type();
  constexpr auto no = std::false_type();
  if (rows > kRows) {
    columns > kRows ? body(yes, yes) : body(yes, no);
  } else {
    columns > kRows ? body(no, yes) : body(no, no);
  }
}

std::int64_t count_blocks(std::int64_t m, std::int64_t n) {
  return core::ceil_div(m, 2 * kRows) * core::ceil_div(n, 2 * kRows);
}

HWY_INLINE void scale_rows(float* c, std::int64_t ldc, std::int64_t rows, std::int64_t columns, float scale) {
  const __m512 factor = _mm512_set1_ps(scale);
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < columns; j += 16) {
      float* const at = c + i * ldc + j;
      _mm512_storeu_ps(at, _mm512_mul_ps(_mm512_loadu_ps(at), factor));
    }
  }
}

void matmul(std::int64_t m, std::int64_t n, std::int64_t pairs, OperandOf<BFloat16> a, const BFloat16* b,
            std::int64_t ldb, float* c, std::int64_t ldc, float scale, bool accumulate) {
  Registers registers;
  Prefetcher prefetcher(a.ahead, count_blocks(m, n) * (pairs / kPairs));
  const auto sum = [&](auto two_rows, auto two_columns, std::int64_t i, std::int64_t j) {
    float *const upper = c + i * ldc + j, *const lower = upper + kRows * ldc;
    const std::int64_t row_bytes = ldc * static_cast<std::int64_t>(sizeof(float));
    const auto begin = [&](auto number, const float* from) {
      accumulate ? load<number>(from, row_bytes) : clear<number>();
    };
    finish_writes();
    begin(Number<0>(), upper);
    if constexpr (two_columns) begin(Number<1>(), upper + kRows);
    if constexpr (two_rows) begin(Number<2>(), lower);
    if constexpr (two_rows && two_columns) begin(Number<3>(), lower + kRows);
    sum_block<two_rows, two_columns>(i, j, pairs, a, b, ldb, prefetcher);
    store<0>(upper, row_bytes);
    if constexpr (two_columns) store<1>(upper + kRows, row_bytes);
    if constexpr (two_rows) store<2>(lower, row_bytes);
    if constexpr (two_rows && two_columns) store<3>(lower + kRows, row_bytes);
    if (scale != 1) scale_rows(upper, ldc, std::min(m - i, 2 * kRows), two_columns ? 2 * kRows : kRows, scale);
  };
  for (std::int64_t i = 0; i < m; i += 2 * kRows) {  // rows of a are read once, and columns of b stay in the L1 cache
    registers.set_rows(std::min(m - i, 2 * kRows));
    for (std::int64_t j = 0; j < n; j += 2 * kRows) {
      call_with_size(m - i, n - j, [&](auto two_rows, auto two_columns) { sum(two_rows, two_columns, i, j); });
    }
  }
}

/// max(best, max over `rows` of a register's sums), NaN ignored.
template <int kNumber>
HWY_INLINE __m512 max_of_rows(std::int64_t rows, __m512 best) {
  alignas(64) float sums[kRows * 16];
  store<kNumber>(sums, kRowBytes);
  __m512 other = best;  // two chains
  std::int64_t i = 0;
  for (; i + 2 <= rows; i += 2) {
    best = _mm512_maskz_max_ps(0xffff, _mm512_load_ps(sums + i * 16), best);  // of a NaN and a number: the number
    other = _mm512_maskz_max_ps(0xffff, _mm512_load_ps(sums + (i + 1) * 16), other);
  }
  if (i < rows) best = _mm512_maskz_max_ps(0xffff, _mm512_load_ps(sums + i * 16), best);
  return _mm512_maskz_max_ps(0xffff, other, best);
}

void matmul_column_max(std::int64_t m, std::int64_t n, std::int64_t pairs, OperandOf<BFloat16> a, const BFloat16* b,
                       std::int64_t ldb, float* top) {
  Registers registers;
  Prefetcher prefetcher(a.ahead, count_blocks(m, n) * (pairs / kPairs));
  __m512 best[2];
  const auto max_of = [&](auto two_rows, auto two_columns, std::int64_t i, std::int64_t j) {
    const std::int64_t upper = std::min(m - i, kRows), lower = m - i - kRows;
    finish_writes();
    clear<0>();
    if constexpr (two_columns) clear<1>();
    if constexpr (two_rows) clear<2>();
    if constexpr (two_rows && two_columns) clear<3>();
    sum_block<two_rows, two_columns>(i, j, pairs, a, b, ldb, prefetcher);
    best[0] = max_of_rows<0>(upper, best[0]);
    if constexpr (two_rows) best[0] = max_of_rows<2>(std::min(lower, kRows), best[0]);
    if constexpr (two_columns) best[1] = max_of_rows<1>(upper, best[1]);
    if constexpr (two_rows && two_columns) best[1] = max_of_rows<3>(std::min(lower, kRows), best[1]);
  };
  for (std::int64_t j = 0; j < n; j += 2 * kRows) {
    best[0] = best[1] = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    for (std::int64_t i = 0; i < m; i += 2 * kRows) {
      registers.set_rows(std::min(m - i, 2 * kRows));
      call_with_size(m - i, n - j, [&](auto two_rows, auto two_columns) { max_of(two_rows, two_columns, i, j); });
    }
    _mm512_storeu_ps(top + j, best[0]);
    if (n - j > kRows) _mm512_storeu_ps(top + j + kRows, best[1]);
  }
}

/// memory[column][pair]: 16 pairs of 16 columns are transposed at a time, a pair as one number.
OperandOf<BFloat16> round_columns(const float* tile, std::int64_t ld, std::int64_t m, std::int64_t n,
                                  const float* factors, BFloat16* memory) {
  const std::int64_t row = pad_steps(m);
  for (std::int64_t first = 0; first < m; first += 2 * kPairs) {
    for (std::int64_t j = 0; j < n; j += 16) {
      alignas(64) float pairs[kPairs * 16];
      for (std::int64_t p = 0; p < kPairs; ++p) {
        _mm512_store_si512(pairs + p * 16, round_pairs(tile, ld, m, factors, first + 2 * p, j));
      }
      tile_ops().transpose(pairs, 16, kPairs, 16, reinterpret_cast<float*>(memory + j * row + first), row / 2);
    }
  }
  return {memory, row, 2};
}

/// Rows of few columns are multiplied in vectors, whose softmax has no empty columns.
PairOps in_tiles(PairOps ops) {
  ops.name = "AMX_BF16";
  ops.speed = 8;
  ops.row_speed = 1;
  ops.rows_have_same_bits = false;
  ops.matmul = matmul;
  ops.matmul_column_max = matmul_column_max;
  ops.round_columns = round_columns;
  return ops;
}

bool has_amx_bf16() {
  unsigned int a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned int kBf16 = 1u << 22, kTile = 1u << 24;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kBf16) != 0 && (d & kTile) != 0;
}

/// Linux gives the registers to a process that asks for them, with all its threads.
bool may_use_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace
}  // namespace openmsa::cpu
HWY_POP_ATTRIBUTES

#endif

namespace openmsa::cpu {

const PairOps* tile_pair_ops() {
#if HWY_ARCH_X86_64 && defined(__linux__)
  static const bool is_supported = vector_pair_ops() != nullptr && has_amx_bf16() && may_use_tiles();
  if (!is_supported) return nullptr;
  static const PairOps ops = in_tiles(*vector_pair_ops());
  return &ops;
#else
  return nullptr;
#endif
}

}  // namespace openmsa::cpu
