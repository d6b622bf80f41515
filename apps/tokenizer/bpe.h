// Byte-pair encoding of one word: neighbours merge, the pair of lowest rank first, until none is left to merge.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace openmsa::tokenizer {

class Bpe {
 public:
  /// Token of every single byte.
  using ByteTokens = std::array<std::int32_t, 256>;

  explicit Bpe(const ByteTokens& byte_tokens) : byte_tokens_(byte_tokens) {}

  /// `left` and `right` merge into `result`; of two pairs the one of lower rank merges first.
  void add_merge(std::int32_t left, std::int32_t right, std::uint32_t rank, std::int32_t result);

  /// Appends the tokens of `word`; time in O(n log n).
  void encode(std::string_view word, std::vector<std::int32_t>& tokens) const;

 private:
  struct Merge {
    std::uint32_t rank;
    std::int32_t result;
  };
  const Merge* find(std::int32_t left, std::int32_t right) const;

  ByteTokens byte_tokens_;
  std::unordered_map<std::uint64_t, Merge> merges_;
};

}  // namespace openmsa::tokenizer
