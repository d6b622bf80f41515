// Which sequences of a call a kernel serves, where kernels share them out among each other by their query tokens.
#pragma once

#include <cstdint>

namespace openmsa::cuda {

/// Sequences with `least` to `most` query tokens. The padding rows after the last sequence go with the longest.
struct QueryRange {
  std::int32_t least;
  std::int32_t most;

  constexpr bool has(std::int32_t seqlen_q) const { return least <= seqlen_q && seqlen_q <= most; }
  constexpr bool operator==(const QueryRange& other) const { return least == other.least && most == other.most; }
  constexpr bool is_open() const { return most == INT32_MAX; }
  constexpr bool is_empty() const { return most < least; }
};

inline constexpr QueryRange kAllSequences{0, INT32_MAX}, kNoSequences{1, 0};

}  // namespace openmsa::cuda
