// Compiled once per instruction set by Highway's foreach_target; row_ops() picks the best at run time.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lm/ops/simd.cc"
#include "lm/ops/simd.h"

#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <cmath>

#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace openmsa::lm::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::CappedTag<float, 16>;
using U = hn::RebindToUnsigned<D>;
using V = hn::Vec<D>;
constexpr std::int64_t kLanes = hn::MaxLanes(D());

HWY_INLINE V set(float x) { return hn::Set(D(), x); }
HWY_INLINE V zero() { return hn::Zero(D()); }
HWY_INLINE float sum_of_lanes(V v) { return hn::GetLane(hn::SumOfLanes(D(), v)); }
HWY_INLINE V widened(hn::Vec<hn::Rebind<std::uint16_t, D>> bits) {
  return hn::BitCast(D(), hn::ShiftLeft<16>(hn::PromoteTo(U(), bits)));
}

/// A whole vector of a row.
struct AllLanes {
  HWY_INLINE V load(const float* p) const { return hn::LoadU(D(), p); }
  HWY_INLINE V load(const io::BFloat16* p) const {
    return widened(hn::LoadU(hn::Rebind<std::uint16_t, D>(), reinterpret_cast<const std::uint16_t*>(p)));
  }
  HWY_INLINE V keep(V v, float) const { return v; }
  HWY_INLINE void store(V v, float* p) const { hn::StoreU(v, D(), p); }
};

/// The `count` elements that a row ends with; the lanes past them load 0 and are not stored.
struct FirstLanes {
  std::size_t count;

  HWY_INLINE V load(const float* p) const {
    HWY_ALIGN float lanes[kLanes] = {};
    for (std::size_t i = 0; i < count; ++i) lanes[i] = p[i];
    return hn::Load(D(), lanes);
  }
  HWY_INLINE V load(const io::BFloat16* p) const {
    HWY_ALIGN float lanes[kLanes] = {};
    for (std::size_t i = 0; i < count; ++i) lanes[i] = io::to_float(p[i]);
    return hn::Load(D(), lanes);
  }
  /// `v` with `rest` in the lanes past the row's end.
  HWY_INLINE V keep(V v, float rest) const { return hn::IfThenElse(hn::FirstN(D(), count), v, set(rest)); }
  HWY_INLINE void store(V v, float* p) const {
    HWY_ALIGN float lanes[kLanes];
    hn::Store(v, D(), lanes);
    for (std::size_t i = 0; i < count; ++i) p[i] = lanes[i];
  }
};

/// Calls body(i, lanes) for the vectors that a row of `count` elements is made of, in order.
template <class Body>
HWY_INLINE void for_each_vector(std::int64_t count, const Body& body) {
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) body(i, AllLanes());
  if (i < count) body(i, FirstLanes{static_cast<std::size_t>(count - i)});
}

/// exp(x), and exp(88) for more; NaN stays NaN, which hn::Exp takes for -inf.
HWY_INLINE V exp_of(V x) {
  const V limited = hn::IfThenElse(hn::Gt(x, set(88)), set(88), x);
  return hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(D(), limited));
}

// -------------------------------------------------------------------------------------------------------- bf16

/// Rounds to the nearest bf16, ties to even; NaN stays NaN.
HWY_INLINE V rounded(V x) {
  const U u;
  const auto bits = hn::BitCast(u, x);
  const auto last = hn::And(hn::ShiftRight<16>(bits), hn::Set(u, 1));  // bit of the result, before rounding
  const auto up = hn::Add(bits, hn::Add(last, hn::Set(u, 0x7fff)));
  const V number = hn::BitCast(D(), hn::And(up, hn::Set(u, 0xffff0000u)));
  return hn::IfThenElse(hn::IsNaN(x), hn::BitCast(D(), hn::Or(bits, hn::Set(u, 0x400000))), number);
}

void widen(std::int64_t count, const io::BFloat16* values, float* result) {
  for_each_vector(count, [&](std::int64_t i, auto lanes) { lanes.store(lanes.load(values + i), result + i); });
}

void round_to_bf16(std::int64_t count, float* values) {
  for_each_vector(count, [&](std::int64_t i, auto lanes) { lanes.store(rounded(lanes.load(values + i)), values + i); });
}

void store_bf16(std::int64_t count, const float* x, float* y, bool add) {
  for_each_vector(count, [&](std::int64_t i, auto lanes) {
    const V value = rounded(lanes.load(x + i));
    lanes.store(add ? rounded(hn::Add(lanes.load(y + i), value)) : value, y + i);
  });
}

float dot_bf16(std::int64_t count, const io::BFloat16* w, const float* x) {
  V sum = zero();
  for_each_vector(count,
                  [&](std::int64_t i, auto lanes) { sum = hn::MulAdd(lanes.load(w + i), lanes.load(x + i), sum); });
  return sum_of_lanes(sum);
}

// -------------------------------------------------------------------------------------------------------- norm

float sum_of_squares(std::int64_t count, const float* x) {
  V sum = zero();
  for_each_vector(count, [&](std::int64_t i, auto lanes) {
    const V value = lanes.load(x + i);
    sum = hn::MulAdd(value, value, sum);
  });
  return sum_of_lanes(sum);
}

void norm(std::int64_t dim, const float* x, float r, const float* w, float* y) {
  for_each_vector(dim, [&](std::int64_t c, auto lanes) {
    lanes.store(hn::Mul(hn::Mul(lanes.load(x + c), set(r)), hn::Add(set(1), lanes.load(w + c))), y + c);
  });
}

float norm_backward_weight(std::int64_t dim, const float* x, float r, const float* w, const float* d_y, float* d_w) {
  V dot = zero();
  for_each_vector(dim, [&](std::int64_t c, auto lanes) {
    const V product = hn::Mul(hn::Mul(lanes.load(x + c), set(r)), lanes.load(d_y + c));
    lanes.store(hn::Add(lanes.load(d_w + c), product), d_w + c);
    dot = hn::MulAdd(product, hn::Add(set(1), lanes.load(w + c)), dot);
  });
  return sum_of_lanes(dot);
}

void norm_backward_input(std::int64_t dim, const float* x, float r, const float* w, const float* d_y, float mean,
                         float* d_x, bool add) {
  for_each_vector(dim, [&](std::int64_t c, auto lanes) {
    const V straight = hn::Mul(lanes.load(d_y + c), hn::Add(set(1), lanes.load(w + c)));
    const V difference = hn::NegMulAdd(lanes.load(x + c), set(r * mean), straight);
    lanes.store(hn::MulAdd(set(r), difference, add ? lanes.load(d_x + c) : zero()), d_x + c);
  });
}

// ------------------------------------------------------------------------------------------------------ rotary

void rotate(std::int64_t half, float* x, const float* cosines, const float* sines, float direction) {
  for_each_vector(half, [&](std::int64_t c, auto lanes) {
    const V cosine = lanes.load(cosines + c), sine = hn::Mul(set(direction), lanes.load(sines + c));
    const V a = lanes.load(x + c), b = lanes.load(x + half + c);
    lanes.store(hn::MulSub(a, cosine, hn::Mul(b, sine)), x + c);
    lanes.store(hn::MulAdd(b, cosine, hn::Mul(a, sine)), x + half + c);
  });
}

void rotate_bf16(std::int64_t half, float* x, const float* cosines, const float* sines) {
  for_each_vector(half, [&](std::int64_t c, auto lanes) {
    const V cosine = rounded(lanes.load(cosines + c)), sine = rounded(lanes.load(sines + c));
    const V a = lanes.load(x + c), b = lanes.load(x + half + c);
    lanes.store(rounded(hn::Sub(rounded(hn::Mul(a, cosine)), rounded(hn::Mul(b, sine)))), x + c);
    lanes.store(rounded(hn::Add(rounded(hn::Mul(b, cosine)), rounded(hn::Mul(a, sine)))), x + half + c);
  });
}

// ------------------------------------------------------------------------------------------------------ swiglu

HWY_INLINE V least(V x, V limit) { return hn::IfThenElse(hn::Lt(x, limit), x, limit); }
HWY_INLINE V clamp(V x, V limit) { return hn::Neg(least(hn::Neg(least(x, limit)), limit)); }
HWY_INLINE V sigmoid(V x) { return hn::Div(set(1), hn::Add(set(1), exp_of(hn::Neg(x)))); }

void swiglu(std::int64_t count, float alpha, float limit, const float* gate, const float* up, float* y) {
  for_each_vector(count, [&](std::int64_t c, auto lanes) {
    const V g = least(lanes.load(gate + c), set(limit)), u = clamp(lanes.load(up + c), set(limit));
    lanes.store(hn::Mul(hn::Mul(hn::Add(u, set(1)), g), sigmoid(hn::Mul(set(alpha), g))), y + c);
  });
}

void swiglu_bf16(std::int64_t count, float alpha, float limit, const float* gate, const float* up, float* y) {
  for_each_vector(count, [&](std::int64_t c, auto lanes) {
    const V g = least(lanes.load(gate + c), set(limit)), u = clamp(lanes.load(up + c), set(limit));
    const V gated = rounded(hn::Mul(g, rounded(sigmoid(rounded(hn::Mul(set(alpha), g))))));
    lanes.store(rounded(hn::Mul(rounded(hn::Add(u, set(1))), gated)), y + c);
  });
}

void swiglu_backward(std::int64_t count, float alpha, float limit, const float* gate, const float* up, const float* d_y,
                     float* d_gate, float* d_up) {
  for_each_vector(count, [&](std::int64_t c, auto lanes) {
    const V gate_c = lanes.load(gate + c), up_c = lanes.load(up + c), d = lanes.load(d_y + c);
    const V g = least(gate_c, set(limit)), u = clamp(up_c, set(limit));
    const V s = sigmoid(hn::Mul(set(alpha), g));
    // Slope of g sigmoid(alpha g).
    const V slope = hn::Mul(s, hn::MulAdd(hn::Mul(set(alpha), g), hn::Sub(set(1), s), set(1)));
    const V through_gate = hn::Mul(hn::Mul(d, hn::Add(u, set(1))), slope);
    lanes.store(hn::IfThenElseZero(hn::Eq(g, gate_c), through_gate), d_gate + c);
    lanes.store(hn::IfThenElseZero(hn::Eq(u, up_c), hn::Mul(hn::Mul(d, g), s)), d_up + c);
  });
}

// ---------------------------------------------------------------------------------------------------- training

void scale(std::int64_t count, float factor, float* x) {
  for_each_vector(count,
                  [&](std::int64_t i, auto lanes) { lanes.store(hn::Mul(set(factor), lanes.load(x + i)), x + i); });
}

/// max_i x[i], NaN ignored unless it is the first.
HWY_INLINE float largest(std::int64_t count, const float* x) {
  V best = set(x[0]);
  for_each_vector(count, [&](std::int64_t i, auto lanes) {
    const V value = lanes.keep(lanes.load(x + i), x[0]);
    best = hn::IfThenElse(hn::Gt(value, best), value, best);
  });
  return hn::GetLane(hn::MaxOfLanes(D(), best));
}

double scaled_softmax(std::int64_t count, float* row, float factor) {
  const float top = largest(count, row);
  V sum = zero();
  for_each_vector(count, [&](std::int64_t i, auto lanes) {
    const V p = exp_of(hn::Sub(lanes.load(row + i), set(top)));
    lanes.store(p, row + i);
    sum = hn::Add(sum, lanes.keep(p, 0));
  });
  const float total = sum_of_lanes(sum);
  openmsa::lm::HWY_NAMESPACE::scale(count, factor / total, row);
  return static_cast<double>(top) + std::log(static_cast<double>(total));
}

void adamw(std::int64_t count, const AdamwCoefficients& c, const float* g, float* m, float* v, float* w) {
  for_each_vector(count, [&](std::int64_t i, auto lanes) {
    const V gradient = lanes.load(g + i), weight = lanes.load(w + i);
    const V first = hn::MulAdd(set(1 - c.beta1), gradient, hn::Mul(set(c.beta1), lanes.load(m + i)));
    const V square = hn::Mul(gradient, gradient);
    const V second = hn::MulAdd(set(1 - c.beta2), square, hn::Mul(set(c.beta2), lanes.load(v + i)));
    const V deviation = hn::Add(hn::Sqrt(hn::Mul(second, set(c.v_scale))), set(c.eps));
    const V step = hn::MulAdd(set(c.decay), weight, hn::Div(hn::Mul(first, set(c.m_scale)), deviation));
    lanes.store(first, m + i);
    lanes.store(second, v + i);
    lanes.store(hn::NegMulAdd(set(c.lr), step, weight), w + i);
  });
}

RowOps make_ops() {
  return {widen,  round_to_bf16,        store_bf16,          dot_bf16,       sum_of_squares,
          norm,   norm_backward_weight, norm_backward_input, rotate,         rotate_bf16,
          swiglu, swiglu_bf16,          swiglu_backward,     scaled_softmax, adamw,
          scale};
}

}  // namespace openmsa::lm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace openmsa::lm {

HWY_EXPORT(make_ops);

const RowOps& row_ops() {
  static const RowOps ops = HWY_DYNAMIC_DISPATCH(make_ops)();
  return ops;
}

}  // namespace openmsa::lm
#endif
