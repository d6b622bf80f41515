// Dense row-major arrays of the compute type: the only thing the equations see. Dtypes, strides and pages end here, on
// the way in; on the way out each number is rounded once to the dtype of the tensor that takes it.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "core/problem.h"

namespace openmsa::ref {

/// [n0, n1, n2], row-major.
template <class T>
class Array {
 public:
  Array(std::int64_t n0, std::int64_t n1, std::int64_t n2, T fill = T{})
      : shape_{n0, n1, n2}, values_(static_cast<std::size_t>(n0 * n1 * n2), fill) {}

  std::int64_t size(int dimension) const { return shape_[static_cast<std::size_t>(dimension)]; }
  T* row(std::int64_t i, std::int64_t j) { return values_.data() + (i * shape_[1] + j) * shape_[2]; }
  const T* row(std::int64_t i, std::int64_t j) const { return values_.data() + (i * shape_[1] + j) * shape_[2]; }
  T& operator()(std::int64_t i, std::int64_t j, std::int64_t c = 0) { return row(i, j)[c]; }
  const T& operator()(std::int64_t i, std::int64_t j, std::int64_t c = 0) const { return row(i, j)[c]; }

 private:
  std::array<std::int64_t, 3> shape_;
  std::vector<T> values_;
};

template <class C>
C dot(const C* x, const C* y, std::int64_t channels) {
  C sum = 0;
  for (std::int64_t c = 0; c < channels; ++c) sum += x[c] * y[c];
  return sum;
}

/// y += a x
template <class C>
void add_scaled(C* y, C a, const C* x, std::int64_t channels) {
  for (std::int64_t c = 0; c < channels; ++c) y[c] += a * x[c];
}

/// The sequences of a batch, and after them the rows that belong to none, as a sequence without keys: it sees nothing.
inline std::vector<core::Sequence> sequences(const core::Problem& problem) {
  std::vector<core::Sequence> result;
  for (std::int64_t b = 0; b < problem.batch; ++b) result.push_back(problem.sequence(b));
  const std::int64_t used_q = problem.used_q();
  result.push_back({used_q, problem.total_q - used_q, 0, 0, nullptr, 0});
  return result;
}

/// Rows [begin, begin + rows) of a query tensor [total_q, heads, channels] or [total_q, heads].
template <class C>
Array<C> load_rows(const openmsa_tensor& tensor, std::int64_t begin, std::int64_t rows) {
  const std::int64_t channels = tensor.rank == 3 ? tensor.shape[2] : 1;
  Array<C> result(rows, tensor.shape[1], channels);
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t h = 0; h < tensor.shape[1]; ++h) {
      for (std::int64_t c = 0; c < channels; ++c) {
        result(i, h, c) = static_cast<C>(core::load(tensor, begin + i, h, tensor.rank == 3 ? c : 0));
      }
    }
  }
  return result;
}

/// One sequence's keys [seqlen_k, heads, channels], times their scales; `rows_of_head(r)` says where those of head r
/// lie. 0 in the place of those of other shards.
template <class C, class RowsOfHead>
Array<C> load_keys(const core::Plan& plan, const core::Sequence& sequence, std::int64_t heads, std::int64_t channels,
                   RowsOfHead rows_of_head) {
  Array<C> result(sequence.seqlen_k, heads, channels);
  for (std::int64_t r = 0; r < heads; ++r) {
    const core::KeyRows rows = rows_of_head(r);
    core::visit_dtype(rows.dtype, [&]<class T>(T) {
      for (std::int64_t j = 0; j < sequence.seqlen_k; ++j) {
        if (!plan.holds(j / plan.config.block_size)) continue;
        const T* token = reinterpret_cast<const T*>(rows.token(j));
        const C scale = rows.scales == nullptr ? C(1) : C(rows.scale(j));
        for (std::int64_t c = 0; c < channels; ++c) result(j, r, c) = static_cast<C>(core::to_float(token[c])) * scale;
      }
    });
  }
  return result;
}

template <class C>
Array<C> load_k(const core::Problem& problem, const core::Sequence& sequence) {
  const openmsa_config& config = problem.plan.config;
  return load_keys<C>(problem.plan, sequence, config.num_heads_kv, config.head_dim,
                      [&](std::int64_t r) { return problem.k(sequence, r); });
}

template <class C>
Array<C> load_v(const core::Problem& problem, const core::Sequence& sequence) {
  const openmsa_config& config = problem.plan.config;
  return load_keys<C>(problem.plan, sequence, config.num_heads_kv, config.head_dim,
                      [&](std::int64_t r) { return problem.v(sequence, r); });
}

/// [seqlen_k, 1, index_dim]
template <class C>
Array<C> load_index_k(const core::Problem& problem, const core::Sequence& sequence) {
  return load_keys<C>(problem.plan, sequence, 1, problem.plan.config.index_dim,
                      [&](std::int64_t) { return problem.index_k(sequence); });
}

/// Writes `values` [rows, n1, n2] to rows [begin, begin + rows) of a tensor of rank 3, or of rank 2 when n1 or n2 is 1.
template <class C>
void store_rows(const openmsa_tensor& tensor, std::int64_t begin, const Array<C>& values) {
  for (std::int64_t i = 0; i < values.size(0); ++i) {
    for (std::int64_t j = 0; j < values.size(1); ++j) {
      for (std::int64_t c = 0; c < values.size(2); ++c) {
        if (tensor.rank == 3) {
          core::store(tensor, values(i, j, c), begin + i, j, c);
        } else {
          core::store(tensor, values(i, j, c), begin + i, j * values.size(2) + c);
        }
      }
    }
  }
}

/// Zeros in every row of a gradient of the keys, those of no sequence included.
inline void clear(const openmsa_tensor& tensor) {
  store_rows(tensor, 0, Array<float>(tensor.shape[0], tensor.shape[1], tensor.rank == 3 ? tensor.shape[2] : 1));
}

}  // namespace openmsa::ref
