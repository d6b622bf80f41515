#include "tokenizer/added_tokens.h"

#include <algorithm>
#include <iterator>

namespace openmsa::tokenizer {
namespace {

std::size_t common_prefix(std::string_view a, std::string_view b) {
  return static_cast<std::size_t>(std::ranges::mismatch(a, b).in1 - a.begin());
}

}  // namespace

std::map<std::string, std::int32_t, std::less<>>::const_iterator AddedTokens::longest_prefix(
    std::string_view text) const {
  // Of the tokens that sort before the text, its prefixes are those that share the most with it; each look-up shortens
  // the text to what the nearest token shares with it, so that no token can be skipped.
  while (!text.empty()) {
    auto found = tokens_.upper_bound(text);
    if (found == tokens_.begin()) break;
    --found;
    const std::size_t shared = common_prefix(found->first, text);
    if (shared == found->first.size()) return found;
    text = text.substr(0, shared);
  }
  return tokens_.end();
}

void AddedTokens::split(std::string_view text, const std::function<void(std::string_view)>& between,
                        const std::function<void(std::int32_t)>& token) const {
  std::size_t done = 0;
  for (std::size_t at = 0; at < text.size();) {
    const auto found = tokens_.empty() ? tokens_.end() : longest_prefix(text.substr(at));
    if (found == tokens_.end()) {
      ++at;
      continue;
    }
    if (at > done) between(text.substr(done, at - done));
    token(found->second);
    at += found->first.size();
    done = at;
  }
  if (done < text.size()) between(text.substr(done));
}

}  // namespace openmsa::tokenizer
