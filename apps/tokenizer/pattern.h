// Regular expressions that cut a text into words.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace openmsa::tokenizer {

/// What the matches in a text may cost together, over all patterns: bytes looked at and steps of backtracking. It grows
/// with the text, so that time does not grow faster than it.
class MatchBudget {
 public:
  /// More of the text is to be matched, with one pattern.
  void add_text(std::size_t bytes) { left_ += kPerByte * bytes; }
  /// InputError where this is more than is left.
  void spend(std::uint64_t effort);

 private:
  static constexpr std::uint64_t kPerByte = 2048;  // what the tokenizers of published models need is some 64
  std::uint64_t left_ = 1'000'000;
};

class Pattern {
 public:
  /// InputError: not a regular expression, or one that this library would read differently than Hugging Face's.
  explicit Pattern(const std::string& regex);

  /// Calls `piece` for every match and for what lies between matches, in order; bytes that are no UTF-8 match nothing.
  /// InputError when the matches take more than `budget`.
  void split(std::string_view text, MatchBudget& budget, const std::function<void(std::string_view)>& piece) const;

 private:
  void split_utf8(std::string_view text, MatchBudget& budget, const std::function<void(std::string_view)>& piece) const;

  std::shared_ptr<const void> code_;
};

}  // namespace openmsa::tokenizer
