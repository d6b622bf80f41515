#include "tokenizer/byte_alphabet.h"

#include <array>
#include <cstdint>

#include "tokenizer/utf8.h"

namespace openmsa::tokenizer {
namespace {

constexpr std::size_t kLetters = 256 + 68;  // code points up to U+0143

bool stands_for_itself(unsigned byte) {
  return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

/// Code point -> byte, -1 where it stands for none.
std::array<int, kLetters> make_table() {
  std::array<int, kLetters> table;
  table.fill(-1);
  unsigned next = 256;
  for (unsigned byte = 0; byte < 256; ++byte) {
    table[stands_for_itself(byte) ? byte : next++] = static_cast<int>(byte);
  }
  return table;
}

/// The code point of a character of one or two bytes; the alphabet has no longer ones.
unsigned code_point(std::string_view character) {
  const auto first = static_cast<std::uint8_t>(character[0]);
  if (character.size() == 1) return first;
  return (first & 0x1fu) << 6 | (static_cast<std::uint8_t>(character[1]) & 0x3fu);
}

}  // namespace

std::optional<std::string> bytes_of_letters(std::string_view token) {
  static const std::array<int, kLetters> table = make_table();
  std::string bytes;
  while (!token.empty()) {
    const std::size_t length = utf8_length(token);
    if (length != 1 && length != 2) return std::nullopt;
    const unsigned letter = code_point(token.substr(0, length));
    if (letter >= kLetters || table[letter] < 0) return std::nullopt;
    bytes += static_cast<char>(table[letter]);
    token.remove_prefix(length);
  }
  return bytes;
}

}  // namespace openmsa::tokenizer
