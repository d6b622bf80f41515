// Products of a warpgroup on tiles (wgmma), started here and waited for by the caller.
#pragma once

#include <cutlass/numeric_conversion.h>

#include <cute/atom/mma_atom.hpp>
#include <cute/tensor.hpp>

namespace openmsa::cuda::sm90 {

/// Starts d = left right, or d += left right; finish with cute::warpgroup_wait and a fence on d.
template <class Mma, class Left, class Right, class Accumulator>
__device__ __forceinline__ void start_product(Mma mma, const Left& left, const Right& right, Accumulator& d,
                                              bool accumulate) {
  using namespace cute;
  warpgroup_fence_operand(d);
  warpgroup_arrive();
  mma.accumulate_ = accumulate ? GMMA::ScaleOut::One : GMMA::ScaleOut::Zero;
  CUTE_UNROLL
  for (int i = 0; i < size<2>(left); ++i) {
    gemm(mma, left(_, _, i), right(_, _, i), d);
    mma.accumulate_ = GMMA::ScaleOut::One;
  }
  warpgroup_commit_batch();
}

/// A left operand of 64 rows in registers.
template <class Element, int kDepth>
using LeftOperand = decltype(cute::make_tensor<Element>(
    cute::Shape<cute::Shape<cute::_2, cute::_2, cute::_2>, cute::_1, cute::Int<kDepth / 16>>{}));

/// An accumulator of 64 rows as the left operand of the next product: the same registers, rounded to Element.
template <class Element, class Accumulator>
__device__ __forceinline__ auto round_to_operand(const Accumulator& d) {
  using namespace cute;
  LeftOperand<Element, size(Accumulator{}) / 4 * 8> operand;
  const cutlass::NumericArrayConverter<Element, float, 2> convert;
  CUTE_UNROLL
  for (int i = 0; i < size(operand) / 2; ++i) {
    reinterpret_cast<cutlass::Array<Element, 2>*>(&operand(0))[i] =
        convert(reinterpret_cast<const cutlass::Array<float, 2>*>(&d(0))[i]);
  }
  return operand;
}

}  // namespace openmsa::cuda::sm90
