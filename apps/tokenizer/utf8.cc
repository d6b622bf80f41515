#include "tokenizer/utf8.h"

#include <algorithm>
#include <cstdint>
#include <utility>

namespace openmsa::tokenizer {
namespace {

std::uint8_t at(std::string_view text, std::size_t i) { return static_cast<std::uint8_t>(text[i]); }

/// Bytes of the character that begins with `lead`, 0 for a byte that begins none.
std::size_t length_of(std::uint8_t lead) {
  if (lead < 0x80) return 1;
  if (lead >= 0xc2 && lead < 0xe0) return 2;
  if (lead >= 0xe0 && lead < 0xf0) return 3;
  return lead >= 0xf0 && lead < 0xf5 ? 4 : 0;
}

/// Whether `second` may follow `lead`: continuation bytes, less overlong forms, surrogates and what is past U+10FFFF.
bool may_follow(std::uint8_t lead, std::uint8_t second) {
  const std::uint8_t least = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  const std::uint8_t most = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  return second >= least && second <= most;
}

/// Whether `text` begins with a character or with a part of one that its end cuts off.
bool begins_character(std::string_view text) {
  const std::size_t length = length_of(at(text, 0));
  if (length == 0) return false;
  for (std::size_t i = 1; i < std::min(length, text.size()); ++i) {
    if (i == 1 ? !may_follow(at(text, 0), at(text, 1)) : (at(text, i) & 0xc0) != 0x80) return false;
  }
  return true;
}

}  // namespace

std::size_t utf8_length(std::string_view text) {
  if (text.empty() || !begins_character(text)) return 0;
  const std::size_t length = length_of(at(text, 0));
  return length <= text.size() ? length : 0;
}

std::string_view utf8_prefix(std::string_view text) {
  std::size_t end = 0;
  while (const std::size_t length = utf8_length(text.substr(end))) end += length;
  return text.substr(0, end);
}

void for_each_stretch(std::string_view text, const std::function<void(std::string_view)>& valid,
                      const std::function<void(std::string_view)>& other) {
  while (!text.empty()) {
    const std::string_view stretch = utf8_prefix(text);
    if (!stretch.empty()) valid(stretch);
    text.remove_prefix(stretch.size());
    std::size_t between = 0;
    while (between < text.size() && utf8_length(text.substr(between)) == 0) ++between;
    if (between > 0) other(text.substr(0, between));
    text.remove_prefix(between);
  }
}

std::string Utf8Stream::push(std::string_view bytes) {
  held_ += bytes;
  std::size_t end = 0;
  while (end < held_.size()) {
    const std::string_view rest = std::string_view(held_).substr(end);
    const std::size_t length = utf8_length(rest);
    if (length == 0 && begins_character(rest)) break;
    end += std::max<std::size_t>(length, 1);
  }
  std::string shown = held_.substr(0, end);
  held_.erase(0, end);
  return shown;
}

std::string Utf8Stream::finish() { return std::exchange(held_, {}); }

}  // namespace openmsa::tokenizer
