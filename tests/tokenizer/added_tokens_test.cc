#include "tokenizer/added_tokens.h"

#include <gtest/gtest.h>

#include <random>

namespace openmsa::tokenizer {
namespace {

using Numbers = std::map<std::string, std::int32_t>;

/// "<3>" for token 3.
std::string bracketed(std::int32_t token) { return std::string("<").append(std::to_string(token)).append(">"); }

/// "text<3>more": tokens by their numbers.
std::string split(const Numbers& numbers, const std::string& text) {
  std::string result;
  AddedTokens(numbers).split(
      text, [&](std::string_view between) { result += between; },
      [&](std::int32_t token) { result += bracketed(token); });
  return result;
}

/// The same, place by place.
std::string expected_split(const Numbers& numbers, const std::string& text) {
  std::string result;
  for (std::size_t at = 0; at < text.size();) {
    const std::pair<const std::string, std::int32_t>* longest = nullptr;
    for (const auto& entry : numbers) {  // a prefix comes before what it begins
      if (text.compare(at, entry.first.size(), entry.first) == 0) longest = &entry;
    }
    result += longest ? bracketed(longest->second) : text.substr(at, 1);
    at += longest ? longest->first.size() : 1;
  }
  return result;
}

TEST(AddedTokens, AreFoundLeftmostAndLongest) {
  const Numbers numbers = {{"<s>", 1}, {"<s>>", 2}, {"s>x", 3}, {"\xff", 4}};
  EXPECT_EQ(split(numbers, ""), "");
  EXPECT_EQ(split(numbers, "<s>x"), "<1>x");
  EXPECT_EQ(split(numbers, "a<s>>s>x<s>"), "a<2><3><1>");
  EXPECT_EQ(split(numbers, "<s\xff\xff>"), "<s<4><4>>");
  EXPECT_EQ(split({}, "<s>"), "<s>");
}

TEST(AddedTokens, ThatOverlapAreFoundAsOneByOne) {
  std::mt19937 random(1);
  const auto word = [&](std::size_t most) {
    std::string text(1 + random() % most, 'a');
    for (char& letter : text) letter = static_cast<char>('a' + random() % 2);
    return text;
  };
  for (int repeat = 0; repeat < 2000; ++repeat) {
    Numbers numbers;
    for (int token = 0; token < 8; ++token) numbers[word(6)] = token;
    const std::string text = word(60);
    EXPECT_EQ(split(numbers, text), expected_split(numbers, text));
  }
}

}  // namespace
}  // namespace openmsa::tokenizer
