// Mistakes that other implementations of sparse attention made (docs/pitfalls.md), one test each, on every backend.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "support/run.h"

namespace openmsa::test {

inline constexpr double kInf = std::numeric_limits<double>::infinity();
inline constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

/// Entries [begin, end) of the first dimension.
inline void fill_rows(Buffer& buffer, std::int64_t begin, std::int64_t end, double value) {
  const std::int64_t row = buffer.size() / buffer.shape()[0];
  for (std::int64_t i = begin * row; i < end * row; ++i) buffer.set(i, value);
}

inline constexpr const char* kCaches[] = {"k_cache", "v_cache", "index_k_cache"};

/// The layer with `garbage` instead of the NaN in what no token owns of its caches: tails and pages.
inline Layer with_garbage(Layer layer, double garbage) {
  for (const char* name : kCaches) {
    Buffer& cache = layer.tensors.at(name);
    for (std::int64_t i = 0; i < cache.size(); ++i) {
      if (std::isnan(cache[i])) cache.set(i, garbage);
    }
  }
  return layer;
}

/// Sequences that begin with the first `num_pages` pages of the first one: in the very same pages, with NaN in those
/// that nobody has any more, and in copies of their own.
struct CommonPrefix {
  Layer shared, copied;

  CommonPrefix(const Layer& layer, std::int64_t num_pages) : shared(layer), copied(layer) {
    Buffer& table = shared.tensors.at("block_table");
    for (std::int64_t b = 1; b < table.shape()[0]; ++b) {
      for (std::int64_t p = 0; p < num_pages; ++p) {
        const auto from = static_cast<std::int64_t>(table.at({0, p})), to = static_cast<std::int64_t>(table.at({b, p}));
        table.set({b, p}, static_cast<double>(from));
        for (const char* name : kCaches) {
          Buffer& copy = copied.tensors.at(name);
          const std::int64_t page = copy.size() / copy.shape()[0];
          for (std::int64_t i = 0; i < page; ++i) copy.set(to * page + i, copy[from * page + i]);
          fill_rows(shared.tensors.at(name), to, to + 1, kNan);
        }
      }
    }
  }
};

/// A selection of one sequence, two KV heads and topk 2: kv_block 1 has one owner, kv_block 4 all queries.
inline Buffer owned_blocks(std::int64_t queries) {
  Buffer indices(OPENMSA_INT32, {2, queries, 2});
  indices.fill(-1);
  for (std::int64_t r = 0; r < 2; ++r) {
    for (std::int64_t t = 0; t < queries; ++t) indices.set({r, t, 0}, 4);
    indices.set({r, 7, 1}, 1);
  }
  return indices;
}

/// Outputs of the same shapes with `gap` elements between rows, poisoned.
inline TensorMap with_gaps(TensorMap outputs, std::int64_t gap) {
  for (auto& [name, output] : outputs) {
    Shape strides(output.shape().size(), 1);
    for (std::size_t d = strides.size(); d-- > 1;) strides[d - 1] = strides[d] * output.shape()[d] + gap;
    output = Buffer::strided(output.dtype(), output.shape(), strides);
  }
  return outputs;
}

inline bool is_finite(const Buffer& buffer) {
  const std::vector<double> values = buffer.values();
  return std::all_of(values.begin(), values.end(), [](double value) { return std::isfinite(value); });
}

inline bool is_zero(const Buffer& buffer) {
  const std::vector<double> values = buffer.values();
  return std::all_of(values.begin(), values.end(), [](double value) { return value == 0; });
}

}  // namespace openmsa::test
