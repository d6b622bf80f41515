// What the host sides of the gradient and of the KL loss have in common.
#pragma once

#include <cuda_runtime_api.h>

#include "core/problem.h"
#include "cuda/common/call.h"
#include "cuda/common/error.h"
#include "cuda/generic/training/params.h"

namespace openmsa::cuda::generic::training {

template <class T>
void set_zero(T* data, std::int64_t count, Launch launch) {
  check(cudaMemsetAsync(data, 0, sizeof(T) * static_cast<std::size_t>(count), launch.stream), "cudaMemsetAsync");
}

/// lse or d_lse.
inline FigureRows figure_rows(const openmsa_tensor& figure) {
  if (!core::present(figure)) return {nullptr, {0, 0}};
  return {static_cast<const float*>(figure.data), {figure.strides[0], figure.strides[1]}};
}

/// A gradient with or without heads.
inline GradientRows gradient_rows(const openmsa_tensor& gradient) {
  return {gradient.data,
          {gradient.strides[0], gradient.rank == 3 ? gradient.strides[1] : 0},
          static_cast<std::int32_t>(gradient.shape[gradient.rank - 1]),
          gradient.dtype == OPENMSA_FLOAT32,
          has_aligned_rows(gradient)};
}

}  // namespace openmsa::cuda::generic::training
