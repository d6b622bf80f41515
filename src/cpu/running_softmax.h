// The running softmax of query rows, as the forward pass brings it up to date key by key.
#pragma once

#include <cstdint>

#include "core/arena.h"
#include "core/problem.h"

namespace openmsa::cpu {

/// o [rows][ld] is not yet divided by sum.
struct RunningSoftmax {
  RunningSoftmax(core::Arena& arena, std::int64_t rows, std::int64_t ld)
      : ld(ld), o(arena.take<float>(rows * ld)), max(arena.take<float>(rows)), sum(arena.take<float>(rows)) {}

  void reset(std::int64_t rows) const;

  /// The rows from `row` on.
  RunningSoftmax from(std::int64_t row) const {
    RunningSoftmax result = *this;
    result.o += row * ld;
    result.max += row;
    result.sum += row;
    return result;
  }

  std::int64_t ld;
  float* o;
  float* max;
  float* sum;
};

/// The first row becomes that of its own keys and those of the first row of `other`, which is used up.
void merge_rows(const RunningSoftmax& row, const RunningSoftmax& other);

/// o and lse of one query row, from the first row of `state`.
void write_row(const core::Problem& problem, std::int64_t row, std::int64_t head, const RunningSoftmax& state);

}  // namespace openmsa::cpu
