// How the rows of a packed batch belong to sequences.
#pragma once

#include <cstdint>
#include <vector>

namespace openmsa::lm {

struct Sequences {
  std::vector<std::int32_t> cu_seqlens;  // [batch + 1] prefix sums from 0
  std::vector<std::int32_t> positions;   // [tokens] position of each row inside its own sequence

  std::int64_t num_tokens() const { return static_cast<std::int64_t>(positions.size()); }
  std::int64_t batch() const { return static_cast<std::int64_t>(cu_seqlens.size()) - 1; }
};

/// Whole sequences of the given lengths.
inline Sequences packed_sequences(const std::vector<std::int64_t>& lengths) {
  Sequences sequences{{0}, {}};
  for (const std::int64_t length : lengths) {
    for (std::int64_t i = 0; i < length; ++i) sequences.positions.push_back(static_cast<std::int32_t>(i));
    sequences.cu_seqlens.push_back(static_cast<std::int32_t>(sequences.positions.size()));
  }
  return sequences;
}

/// `count` tokens of one sequence, the first at `position`.
inline Sequences one_chunk(std::int64_t position, std::int64_t count) {
  Sequences sequences{{0, static_cast<std::int32_t>(count)}, {}};
  for (std::int64_t i = 0; i < count; ++i) sequences.positions.push_back(static_cast<std::int32_t>(position + i));
  return sequences;
}

}  // namespace openmsa::lm
