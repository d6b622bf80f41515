// Tokens that are recognised in a text as they are, before anything else.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>

namespace openmsa::tokenizer {

class AddedTokens {
 public:
  /// `content` is not empty.
  void add(const std::string& content, std::int32_t token) { tokens_[content] = token; }

  /// Walks through the text: `between` for what holds no added token, `token` for each one found, leftmost first and
  /// the longest of those that begin at one place.
  void split(std::string_view text, const std::function<void(std::string_view)>& between,
             const std::function<void(std::int32_t)>& token) const;

 private:
  /// The longest added token that `text` begins with, or the end.
  std::map<std::string, std::int32_t, std::less<>>::const_iterator longest_prefix(std::string_view text) const;

  std::map<std::string, std::int32_t, std::less<>> tokens_;
};

}  // namespace openmsa::tokenizer
