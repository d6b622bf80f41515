// Regular expressions that cut a text into words.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace openmsa::tokenizer {

class Pattern {
 public:
  /// InputError: not a regular expression, or one that this library would read differently than Hugging Face's.
  explicit Pattern(const std::string& regex);

  /// Calls `piece` for every match and for what lies between matches, in order; bytes that are no UTF-8 match nothing.
  /// InputError when a match takes too long.
  void split(std::string_view text, const std::function<void(std::string_view)>& piece) const;

 private:
  void split_utf8(std::string_view text, const std::function<void(std::string_view)>& piece) const;

  std::shared_ptr<const void> code_;
  std::shared_ptr<void> limits_;
};

}  // namespace openmsa::tokenizer
