// Compiled once per instruction set by Highway's foreach_target; tile_ops() picks the best at run time.
// Scalable vectors (SVE, RVV) are left out: the kernels keep accumulators in arrays of vectors.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/tile/tile.cc"
#include "cpu/tile/tile.h"

#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "core/dtype.h"
#include "core/plan.h"
#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace openmsa::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::CappedTag<float, kLanes>;
using V = hn::Vec<D>;
constexpr std::int64_t kL = hn::MaxLanes(D());

HWY_INLINE V zero() { return hn::Zero(D()); }
HWY_INLINE V set(float x) { return hn::Set(D(), x); }
HWY_INLINE V load(const float* p) { return hn::LoadU(D(), p); }
HWY_INLINE void store(V v, float* p) { hn::StoreU(v, D(), p); }

/// max(a, b) where a NaN in b is ignored.
HWY_INLINE V max_number(V a, V b) {
#if HWY_ARCH_X86 && HWY_TARGET != HWY_SCALAR
  return hn::Max(b, a);  // x86-64's instruction: of a NaN and a, a
#else
  return hn::IfThenElse(hn::Gt(b, a), b, a);
#endif
}

/// exp(x) for x <= 0, with 0 below -87; NaN stays NaN. Half the instructions of hn::Exp, which serves every x:
///   x = n ln 2 + r,  |r| <= ln 2 / 2,  exp(x) = 2^n (1 + r + r^2 q(r)),  q interpolated at Chebyshev's nodes: 1e-8
HWY_INLINE V exp_of(V x) {
  constexpr float kRound = 0x1.8p23f + 127;  // a sum with it ends in the bits of n + 127, which is the exponent of 2^n
  constexpr float kLog2e = 1.44269504f, kLn2 = 0x1.63p-1f, kLn2Rest = -2.12194440e-4f;  // n kLn2 has no rounding
  const V shifted = hn::MulAdd(x, set(kLog2e), set(kRound));
  const V n = hn::Sub(shifted, set(kRound));
  const V r = hn::NegMulAdd(n, set(kLn2Rest), hn::NegMulAdd(n, set(kLn2), x));
  V q = set(0.00139262131f);
  for (const float coefficient : {0.00836320315f, 0.0416665561f, 0.166665763f, 0.5f}) {
    q = hn::MulAdd(q, r, set(coefficient));
  }
  const V y = hn::Add(hn::MulAdd(hn::Mul(r, r), q, r), set(1));
  const V power = hn::BitCast(D(), hn::ShiftLeft<23>(hn::BitCast(hn::RebindToUnsigned<D>(), shifted)));
  return hn::IfThenZeroElse(hn::Lt(x, set(-87)), hn::Mul(y, power));
}

// ------------------------------------------------------------------------------------------------- products

#include "cpu/tile/product-inl.h"

#if HWY_TARGET != HWY_SCALAR
/// 128 bits, from element p on, of row i and of every fourth row after it.
template <class AnyRows>
HWY_INLINE V every_fourth(const AnyRows& rows, std::int64_t i, std::int64_t p) {
  const hn::FixedTag<float, 4> quarter;
  const auto first = hn::LoadU(quarter, rows.at(i) + p);
#if HWY_TARGET <= HWY_AVX3
  const hn::FixedTag<float, 8> half;
  const auto low = hn::Combine(half, hn::LoadU(quarter, rows.at(i + 4) + p), first);
  const auto third = hn::LoadU(quarter, rows.at(i + 8) + p);
  return hn::Combine(D(), hn::Combine(half, hn::LoadU(quarter, rows.at(i + 12) + p), third), low);
#elif HWY_TARGET <= HWY_AVX2
  return hn::Combine(D(), hn::LoadU(quarter, rows.at(i + 4) + p), first);
#else
  return first;
#endif
}
#endif

/// Elements p to p + 3 of kL rows, a vector for each element.
template <class AnyRows>
HWY_INLINE void transpose_rows(const AnyRows& rows, std::int64_t p, V (&out)[4]) {
#if HWY_TARGET == HWY_SCALAR
  for (int i = 0; i < 4; ++i) out[i] = set(rows.at(0)[p + i]);
#else
  const D d;
  const V row0 = every_fourth(rows, 0, p), row1 = every_fourth(rows, 1, p);
  const V row2 = every_fourth(rows, 2, p), row3 = every_fourth(rows, 3, p);
  const V low02 = hn::InterleaveLower(d, row0, row2), low13 = hn::InterleaveLower(d, row1, row3);
  const V high02 = hn::InterleaveUpper(d, row0, row2), high13 = hn::InterleaveUpper(d, row1, row3);
  out[0] = hn::InterleaveLower(d, low02, low13);
  out[1] = hn::InterleaveUpper(d, low02, low13);
  out[2] = hn::InterleaveLower(d, high02, high13);
  out[3] = hn::InterleaveUpper(d, high02, high13);
#endif
}

struct Fp32 {
  using Element = float;
  using RowElement = float;
  using Vec = V;
  using Side = V;
  static constexpr std::int64_t kPerColumn = 1, kColumns = kL;
  static constexpr int kLoadedSteps = 4;
  static constexpr int kMaxVectors = static_cast<int>(kL == 16 ? 4 : kLanes / kL);
  /// 24 sums in 32 registers, or 12 in 16; fewer of one vector per row, for want of registers for the rows' addresses.
  static constexpr int rows(int vectors) {
    const int most = kL == 16 ? 24 : kL == 8 ? 12 : 8;
    return vectors == 1 ? 12 : std::max(1, most / vectors);
  }

  static HWY_INLINE V left(const float* p) { return openmsa::cpu::HWY_NAMESPACE::set(*p); }
  static HWY_INLINE V right(const float* p) { return openmsa::cpu::HWY_NAMESPACE::load(p); }
  template <class AnyRows>
  static HWY_INLINE void load_steps(const AnyRows& rows, std::int64_t p, V (&steps)[4]) {
    transpose_rows(rows, p, steps);
  }
  static HWY_INLINE V mul_add(V left, V right, V sum) { return hn::MulAdd(left, right, sum); }
  static HWY_INLINE V zero() { return openmsa::cpu::HWY_NAMESPACE::zero(); }
  static HWY_INLINE V lowest() { return openmsa::cpu::HWY_NAMESPACE::set(-kInfinity); }
  static HWY_INLINE V load(const float* p) { return openmsa::cpu::HWY_NAMESPACE::load(p); }
  static HWY_INLINE void store(V v, float* p) { openmsa::cpu::HWY_NAMESPACE::store(v, p); }
  static HWY_INLINE V multiply(V v, float) { return v; }
  static HWY_INLINE V max_number(V a, V b) { return openmsa::cpu::HWY_NAMESPACE::max_number(a, b); }
};

void matmul(std::int64_t m, std::int64_t n, std::int64_t k, Operand a, const float* b, std::int64_t ldb, float* c,
            std::int64_t ldc, bool accumulate) {
  matmul_tile<Fp32>(m, n, k, a, b, ldb, c, ldc, 1, accumulate);
}

void matmul_column_max(std::int64_t m, std::int64_t n, std::int64_t k, Operand a, const float* b, std::int64_t ldb,
                       float* top) {
  matmul_column_max_tile<Fp32>(m, n, k, a, b, ldb, top);
}

void row_products(std::int64_t m, std::int64_t n, std::int64_t k, Operand a, const float* q, std::int64_t ldq, float* s,
                  std::int64_t lds) {
  row_products_tile<Fp32>(m, n, k, a, q, ldq, s, lds, 1);
}

// ------------------------------------------------------------------------------------ functions of a column

/// max_i s[i] of kL columns, over the first `visible` of m rows. Four rows at a time, for a maximum waits for the one
/// before it.
template <bool kIsPartial>
HWY_INLINE V max_of_columns(const float* s, std::int64_t ld, std::int64_t m, V visible) {
  const auto row = [&](std::int64_t i, V best) {
    const V score = load(s + i * ld);
    if constexpr (!kIsPartial) return max_number(best, score);
    return max_number(best, hn::IfThenElse(hn::Lt(set(static_cast<float>(i)), visible), score, best));
  };
  V best[4] = {set(-kInfinity), set(-kInfinity), set(-kInfinity), set(-kInfinity)};
  std::int64_t i = 0;
  for (; i + 4 <= m; i += 4) {
    for (int j = 0; j < 4; ++j) best[j] = row(i + j, best[j]);
  }
  for (; i < m; ++i) best[0] = row(i, best[0]);
  return max_number(max_number(best[0], best[1]), max_number(best[2], best[3]));
}

void column_max(const float* s, std::int64_t ld, std::int64_t m, std::int64_t n, const float* limit, float* top) {
  for (std::int64_t j = 0; j < n; j += kL) store(max_of_columns<true>(s + j, ld, m, load(limit + j)), top + j);
}

/// s = exp(s - shift), 0 past `visible`; returns the sum.
template <bool kIsPartial>
HWY_INLINE V exponentials(float* s, std::int64_t ld, std::int64_t m, V visible, V shift, Prefetcher& prefetcher) {
  V total = zero();
  for (std::int64_t i = 0; i < m; ++i, s += ld) {
    if (i % kChunk == 0) prefetcher.step();
    V p = exp_of(hn::Sub(load(s), shift));
    if constexpr (kIsPartial) p = hn::IfThenElseZero(hn::Lt(set(static_cast<float>(i)), visible), p);
    store(p, s);
    total = hn::Add(total, p);
  }
  return total;
}

template <bool kIsPartial>
HWY_INLINE void softmax_of_columns(float* s, std::int64_t ld, std::int64_t m, V visible, float* max, float* sum,
                                   float* alpha, Prefetcher& prefetcher) {
  const V old_max = load(max);
  const V new_max = max_number(old_max, max_of_columns<kIsPartial>(s, ld, m, visible));
  const V shift = hn::IfThenElse(hn::Gt(new_max, set(-kInfinity)), new_max, zero());
  const V total = exponentials<kIsPartial>(s, ld, m, visible, shift, prefetcher);
  const V scale = exp_of(hn::Sub(old_max, shift));
  store(scale, alpha);
  store(new_max, max);
  store(hn::MulAdd(load(sum), scale, total), sum);
}

void softmax_columns(float* s, std::int64_t ld, std::int64_t m, std::int64_t n, const float* limit, float* max,
                     float* sum, float* alpha, Ahead ahead) {
  Prefetcher prefetcher(ahead, n / kL * core::ceil_div(m, kChunk));
  for (std::int64_t j = 0; j < n; j += kL) {
    const V visible = load(limit + j);
    const bool is_partial = !hn::AllTrue(D(), hn::Ge(visible, set(static_cast<float>(m))));
    const auto columns = is_partial ? softmax_of_columns<true> : softmax_of_columns<false>;
    columns(s + j, ld, m, visible, max + j, sum + j, alpha + j, prefetcher);
  }
}

void probabilities(float* s, std::int64_t ld, std::int64_t m, std::int64_t n, const float* limit, const float* lse) {
  for (std::int64_t j = 0; j < n; j += kL) {
    const V shift = load(lse + j);
    const V visible = hn::IfThenElseZero(hn::Ne(shift, set(-kInfinity)), load(limit + j));
    for (std::int64_t i = 0; i < m; ++i) {
      const auto mask = hn::Lt(set(static_cast<float>(i)), visible);
      store(hn::IfThenElseZero(mask, exp_of(hn::Sub(load(s + i * ld + j), shift))), s + i * ld + j);
    }
  }
}

void d_scores(const float* p, float* dp, std::int64_t ld, std::int64_t m, std::int64_t n, const float* delta) {
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < n; j += kL) {
      const V probability = load(p + i * ld + j);
      const V ds = hn::Mul(probability, hn::Sub(load(dp + i * ld + j), load(delta + j)));
      store(hn::IfThenElseZero(hn::Ne(probability, zero()), ds), dp + i * ld + j);
    }
  }
}

/// log of a probability; of 0 too, where the caller discards it.
HWY_INLINE V log_of(V p) { return hn::Log(D(), hn::Max(p, set(std::numeric_limits<float>::min()))); }

void kl_columns(const float* p, float* s, std::int64_t ld, std::int64_t m, std::int64_t n, const float* limit,
                const float* lse, const float* weight, float* kl) {
  for (std::int64_t j = 0; j < n; j += kL) {
    const V visible = load(limit + j), shift = load(lse + j), scale = load(weight + j);
    V loss = zero();
    for (std::int64_t i = 0; i < m; ++i) {
      const auto mask = hn::Lt(set(static_cast<float>(i)), visible);
      const V teacher = load(p + i * ld + j);
      const V log_student = hn::Sub(load(s + i * ld + j), shift);
      const auto counts = hn::And(mask, hn::Gt(teacher, zero()));
      loss = hn::Add(loss, hn::IfThenElseZero(counts, hn::Mul(teacher, hn::Sub(log_of(teacher), log_student))));
      const V gradient = hn::Mul(hn::Sub(exp_of(log_student), teacher), scale);
      store(hn::IfThenElseZero(mask, gradient), s + i * ld + j);
    }
    store(hn::Add(load(kl + j), loss), kl + j);
  }
}

void teacher_columns(const float* p, float* s, std::int64_t ld, std::int64_t m, std::int64_t n, const float* limit,
                     const float* lse, const float* weight) {
  for (std::int64_t j = 0; j < n; j += kL) {
    const V visible = load(limit + j), shift = load(lse + j), scale = load(weight + j);
    for (std::int64_t i = 0; i < m; ++i) {
      const V teacher = load(p + i * ld + j);
      const auto counts = hn::And(hn::Lt(set(static_cast<float>(i)), visible), hn::Gt(teacher, zero()));
      const V ratio = hn::Sub(log_of(teacher), hn::Sub(load(s + i * ld + j), shift));
      store(hn::IfThenElseZero(counts, hn::Mul(ratio, scale)), s + i * ld + j);
    }
  }
}

// --------------------------------------------------------------------------------------- functions of a row

/// max_i s[i] over `visible` scores, by lanes. Four vectors at a time, for a maximum waits for the one before it.
HWY_INLINE float max_of_row(const float* s, std::int64_t visible) {
  V best[4] = {set(-kInfinity), set(-kInfinity), set(-kInfinity), set(-kInfinity)};
  std::int64_t i = 0;
  for (; i + 4 * kL <= visible; i += 4 * kL) {
    for (int j = 0; j < 4; ++j) best[j] = max_number(best[j], load(s + i + j * kL));
  }
  for (; i < visible; i += kL) {
    const auto counts = hn::FirstN(D(), static_cast<std::size_t>(visible - i));
    best[0] = max_number(best[0], hn::IfThenElse(counts, load(s + i), best[0]));
  }
  return hn::GetLane(hn::MaxOfLanes(D(), max_number(max_number(best[0], best[1]), max_number(best[2], best[3]))));
}

/// Of the first limit[j] of m scores.
HWY_INLINE std::int64_t visible_in(const float* limit, std::int64_t j, std::int64_t m) {
  return std::min(static_cast<std::int64_t>(limit[j]), m);
}

void row_max(const float* s, std::int64_t ld, std::int64_t m, std::int64_t n, const float* limit, float* top) {
  for (std::int64_t j = 0; j < n; ++j) top[j] = max_of_row(s + j * ld, visible_in(limit, j, m));
}

void softmax_rows(float* s, std::int64_t ld, std::int64_t m, std::int64_t n, const float* limit, float* max, float* sum,
                  float* alpha, Ahead ahead) {
  Prefetcher prefetcher(ahead, n * core::ceil_div(m, kL));
  for (std::int64_t j = 0; j < n; ++j, s += ld) {
    const std::int64_t visible = visible_in(limit, j, m);
    const float top = max_of_row(s, visible), new_max = top > max[j] ? top : max[j];
    const float shift = new_max > -kInfinity ? new_max : 0;
    V total = zero();
    for (std::int64_t i = 0; i < m; i += kL) {
      prefetcher.step();
      V p = exp_of(hn::Sub(load(s + i), set(shift)));
      if (i + kL > visible) {
        p = hn::IfThenElseZero(hn::FirstN(D(), static_cast<std::size_t>(std::max<std::int64_t>(visible - i, 0))), p);
      }
      store(p, s + i);
      total = hn::Add(total, p);
    }
    alpha[j] = hn::GetLane(exp_of(set(max[j] - shift)));
    max[j] = new_max;
    sum[j] = sum[j] * alpha[j] + hn::GetLane(hn::SumOfLanes(D(), total));
  }
}

// ----------------------------------------------------------------------------------------------------- rows

void scale_add(float* o, const float* t, float alpha, std::int64_t n) {
  for (std::int64_t j = 0; j < n; j += kL) store(hn::MulAdd(load(o + j), set(alpha), load(t + j)), o + j);
}

void scale_tile(float* s, std::int64_t ld, std::int64_t m, std::int64_t n, const float* rows, const float* columns) {
  for (std::int64_t i = 0; i < m; ++i, s += ld) {
    const V row = set(rows == nullptr ? 1 : rows[i]);
    for (std::int64_t j = 0; j < n; j += kL) {
      const V factor = columns == nullptr ? row : hn::Mul(row, load(columns + j));
      store(hn::Mul(load(s + j), factor), s + j);
    }
  }
}

using Int = hn::RebindToSigned<D>;
using VI = hn::Vec<Int>;

/// See core::score_key.
HWY_INLINE VI key_of(V score) {
  const Int d;
  const VI bits = hn::BitCast(d, hn::Add(score, zero()));
  const VI inverted = hn::Xor(bits, hn::Set(d, std::numeric_limits<std::int32_t>::max()));
  const VI key = hn::IfThenElse(hn::Lt(bits, hn::Zero(d)), inverted, bits);
  return hn::IfThenElse(hn::RebindMask(d, hn::IsNaN(score)), hn::Set(d, kNoKey + 1), key);
}

/// Where one entry gives way, all after it move on by one place.
HWY_INLINE void insert(VI key, VI block, std::int32_t* keys, std::int32_t* blocks, std::int64_t ld,
                       std::int64_t depth) {
  const Int d;
  auto moves = hn::FirstN(d, 0);
  for (std::int64_t i = 0; i < depth; ++i, keys += ld, blocks += ld) {
    const VI old_key = hn::LoadU(d, keys), old_block = hn::LoadU(d, blocks);
    moves = hn::Or(moves, hn::Gt(key, old_key));
    hn::StoreU(hn::IfThenElse(moves, key, old_key), d, keys);
    hn::StoreU(hn::IfThenElse(moves, block, old_block), d, blocks);
    key = hn::IfThenElse(moves, old_key, key);
    block = hn::IfThenElse(moves, old_block, block);
  }
}

void offer(const float* score, std::int32_t block, const std::int32_t* end, std::int64_t n, const TopkColumns& lists) {
  const Int d;
  const VI number = hn::Set(d, block);
  const std::int32_t* last = lists.keys + (lists.depth - 1) * lists.ld;
  for (std::int64_t j = 0; j < n; j += kL) {
    const auto competes = hn::Lt(number, hn::LoadU(d, end + j));
    const VI key = hn::IfThenElse(competes, key_of(load(score + j)), hn::Set(d, kNoKey));
    if (hn::AllFalse(d, hn::Gt(key, hn::LoadU(d, last + j)))) continue;
    insert(key, number, lists.keys + j, lists.blocks + j, lists.ld, lists.depth);
  }
}

void transpose(const float* in, std::int64_t ldi, std::int64_t m, std::int64_t n, float* out, std::int64_t ldo) {
  for (std::int64_t i = 0; i < m; i += kL) {
    for (std::int64_t j = 0; j < n; j += 4) {
      V columns[4];
      transpose_rows(Rows<float, true>{in + i * ldi, ldi, kL}, j, columns);
      for (std::int64_t c = 0; c < 4; ++c) store(columns[c], out + (j + c) * ldo + i);
    }
  }
}

bool all_finite(const float* tile, std::int64_t ld, std::int64_t m, std::int64_t n) {
  V sum = zero();  // x * 0 is 0 for finite x and NaN for the others
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < n; j += kL) sum = hn::MulAdd(load(tile + i * ld + j), zero(), sum);
  }
  return hn::AllTrue(D(), hn::Eq(sum, zero()));
}

/// By way of fp16, whose exponent has the place for e4m3's, 8 further from its bias.
HWY_INLINE V widen_e4m3(const std::uint8_t* from) {
  const hn::Rebind<std::uint16_t, D> d;
  const auto bits = hn::PromoteTo(d, hn::LoadU(hn::Rebind<std::uint8_t, D>(), from));
  const auto sign = hn::ShiftLeft<8>(hn::And(bits, hn::Set(d, 0x80)));
  const auto magnitude = hn::ShiftLeft<7>(hn::And(bits, hn::Set(d, 0x7f)));
  const auto half = hn::BitCast(hn::Rebind<hwy::float16_t, D>(), hn::Or(sign, magnitude));
  const V value = hn::Mul(hn::PromoteTo(D(), half), set(256));
  return hn::IfThenElse(hn::Eq(hn::Abs(value), set(480)), hn::NaN(D()), value);  // 480 would be 0x7f
}

/// Elements of a storage type, as fp32: one, or kL of them. kSize is an element's bytes.
struct StoredFp32 {
  static constexpr std::int64_t kSize = 4;
  static float one(const std::byte* p) { return *reinterpret_cast<const float*>(p); }
  static HWY_INLINE V vector(const std::byte* p) { return load(reinterpret_cast<const float*>(p)); }
};
struct StoredBf16 {
  using Element = core::BFloat16;
  static constexpr std::int64_t kSize = 2;
  static float one(const std::byte* p) { return core::to_float(*reinterpret_cast<const core::BFloat16*>(p)); }
  static HWY_INLINE V vector(const std::byte* p) {
    const auto halves = hn::LoadU(hn::Rebind<std::uint16_t, D>(), reinterpret_cast<const std::uint16_t*>(p));
    return hn::BitCast(D(), hn::ShiftLeft<16>(hn::PromoteTo(hn::Rebind<std::uint32_t, D>(), halves)));
  }
};
struct StoredFp16 {
  using Element = core::Float16;
  static constexpr std::int64_t kSize = 2;
  static float one(const std::byte* p) { return core::to_float(*reinterpret_cast<const core::Float16*>(p)); }
  static HWY_INLINE V vector(const std::byte* p) {
    const auto bits = hn::LoadU(hn::Rebind<std::uint16_t, D>(), reinterpret_cast<const std::uint16_t*>(p));
    return hn::PromoteTo(D(), hn::BitCast(hn::Rebind<hwy::float16_t, D>(), bits));
  }
};
struct StoredE4m3 {
  static constexpr std::int64_t kSize = 1;
  static float one(const std::byte* p) { return core::to_float(*reinterpret_cast<const core::Float8E4M3*>(p)); }
  static HWY_INLINE V vector(const std::byte* p) { return widen_e4m3(reinterpret_cast<const std::uint8_t*>(p)); }
};

/// Products whose right operand is widened on the way, for a register block of few rows.
template <class Stored>
struct Widened : Fp32 {
  using Element = typename Stored::Element;
  static constexpr int rows(int vectors) { return std::min(Fp32::rows(vectors), static_cast<int>(kFewRows)); }
  static HWY_INLINE V right(const Element* p) { return Stored::vector(reinterpret_cast<const std::byte*>(p)); }
};

void matmul_widened(std::int64_t m, std::int64_t n, std::int64_t k, Operand a, openmsa_dtype dtype, const std::byte* b,
                    std::int64_t ldb, float* c, std::int64_t ldc, bool accumulate) {
  if (dtype == OPENMSA_BFLOAT16) {
    const auto* const right = reinterpret_cast<const core::BFloat16*>(b);
    matmul_tile<Widened<StoredBf16>>(m, n, k, a, right, ldb, c, ldc, 1, accumulate);
  } else {
    const auto* const right = reinterpret_cast<const core::Float16*>(b);
    matmul_tile<Widened<StoredFp16>>(m, n, k, a, right, ldb, c, ldc, 1, accumulate);
  }
}

template <class Stored>
void widen_each(const std::byte* from, std::int64_t from_bytes, std::int64_t rows, float* to, std::int64_t ld,
                std::int64_t count, float scale, const Ahead& ahead) {
  Prefetcher prefetcher(ahead, rows);
  const V factor = set(scale);
  for (std::int64_t row = 0; row < rows; ++row, from += from_bytes, to += ld) {
    prefetcher.step();
    std::int64_t i = 0;
    for (; i + kL <= count; i += kL) store(hn::Mul(Stored::vector(from + i * Stored::kSize), factor), to + i);
    for (; i < count; ++i) to[i] = Stored::one(from + i * Stored::kSize) * scale;
  }
}

void widen_rows(openmsa_dtype dtype, const std::byte* from, std::int64_t from_bytes, std::int64_t rows, float* to,
                std::int64_t ld, std::int64_t count, float scale, const Ahead& ahead) {
  const auto widen = dtype == OPENMSA_FLOAT32       ? widen_each<StoredFp32>
                     : dtype == OPENMSA_BFLOAT16    ? widen_each<StoredBf16>
                     : dtype == OPENMSA_FLOAT8_E4M3 ? widen_each<StoredE4m3>
                                                    : widen_each<StoredFp16>;
  widen(from, from_bytes, rows, to, ld, count, scale, ahead);
}

void widen(openmsa_dtype dtype, const std::byte* from, float* to, std::int64_t count, float scale) {
  widen_rows(dtype, from, 0, 1, to, 0, count, scale, {});
}

void narrow(openmsa_dtype dtype, const float* from, std::byte* to, std::int64_t count) {
  if (dtype == OPENMSA_FLOAT32) {
    for (std::int64_t i = 0; i < count; ++i) reinterpret_cast<float*>(to)[i] = from[i];
  } else if (dtype == OPENMSA_BFLOAT16) {
    for (std::int64_t i = 0; i < count; ++i) reinterpret_cast<core::BFloat16*>(to)[i] = core::to_bfloat16(from[i]);
  } else if (dtype == OPENMSA_FLOAT8_E4M3) {
    for (std::int64_t i = 0; i < count; ++i) reinterpret_cast<core::Float8E4M3*>(to)[i] = core::to_float8_e4m3(from[i]);
  } else {
    for (std::int64_t i = 0; i < count; ++i) reinterpret_cast<core::Float16*>(to)[i] = core::to_float16(from[i]);
  }
}

TileOps make_ops() {
  return {matmul,       matmul_widened, matmul_column_max, row_products, column_max,      row_max,   softmax_columns,
          softmax_rows, probabilities,  d_scores,          kl_columns,   teacher_columns, scale_add, scale_tile,
          offer,        transpose,      all_finite,        widen,        widen_rows,      narrow};
}

}  // namespace openmsa::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace openmsa::cpu {

HWY_EXPORT(make_ops);

bool fetches_past_first_level() {
#if HWY_ARCH_X86_64
  if (__builtin_cpu_is("intel")) return true;
#endif
#ifdef _SC_LEVEL1_DCACHE_SIZE
  static const long bytes = sysconf(_SC_LEVEL1_DCACHE_SIZE);  // 0 where the system does not know
  return bytes > 0 && bytes <= 32 << 10;
#else
  return false;
#endif
}

const TileOps& tile_ops() {
  static const TileOps ops = HWY_DYNAMIC_DISPATCH(make_ops)();
  return ops;
}

}  // namespace openmsa::cpu
#endif
