#include "tokenizer/pattern.h"

#include <gmock/gmock.h>

#include "io/error.h"
#include "support/growth.h"

namespace openmsa::tokenizer {
namespace {

std::vector<std::string> pieces(const std::string& regex, const std::string& text) {
  std::vector<std::string> result;
  MatchBudget budget;
  budget.add_text(text.size());
  Pattern(regex).split(text, budget, [&](std::string_view piece) { result.emplace_back(piece); });
  return result;
}

TEST(Pattern, KeepsMatchesAndWhatLiesBetween) {
  EXPECT_THAT(pieces("[0-9]+", "ab12cd3"), testing::ElementsAre("ab", "12", "cd", "3"));
  EXPECT_THAT(pieces("x", "abc"), testing::ElementsAre("abc"));
  EXPECT_THAT(pieces("x*", "axxb"), testing::ElementsAre("a", "xx", "b"));
  EXPECT_THAT(pieces("x", ""), testing::ElementsAre());
  EXPECT_THAT(pieces("(?=b)", "aabb"), testing::ElementsAre("aa", "b", "b"));
}

TEST(Pattern, KnowsUnicode) {
  EXPECT_THAT(pieces("\\p{Lu}", "aÄb"), testing::ElementsAre("a", "Ä", "b"));
  EXPECT_THAT(pieces("\\s+", "a\u3000\u00a0b"), testing::ElementsAre("a", "\u3000\u00a0", "b"));
}

TEST(Pattern, BytesThatAreNoUtf8MatchNothing) {
  EXPECT_THAT(pieces(".", "a\xff\xfe\u00e9\xc3"), testing::ElementsAre("a", "\xff\xfe", "\u00e9", "\xc3"));
}

TEST(Pattern, RefusesWhatItCannotReadAlike) {
  for (const char* regex : {"(", "[a-z&&[^b]]", "\\h", "(?m).", "\\C", "*a"}) {
    EXPECT_THROW(Pattern{regex}, io::InputError) << regex;
  }
  EXPECT_THROW(Pattern(std::string(100000, 'a')), io::InputError);
}

TEST(Pattern, GivesUpOnExplosiveMatches) { EXPECT_THROW(pieces("(a+)+$", std::string(64, 'a') + "b"), io::InputError); }

/// Each match stays far below any limit of its own.
TEST(Pattern, GivesUpOnTextsOfExpensiveMatches) {
  EXPECT_THROW(pieces("(?:(?:[^~]|[^~]){1,20}~~~|.)", std::string(100, 'a')), io::InputError);
  EXPECT_THROW(pieces("(?:(?:[^~]|[^~]){1,20}~~~)", std::string(100, 'a')), io::InputError) << "no match at all";
}

/// A match sees the text piece by piece, but what it finds is what it would find in the whole.
TEST(Pattern, LongMatchesSeeAllOfTheText) {
  for (const std::size_t length : {60, 63, 64, 65, 100, 255, 256, 257, 600}) {
    const std::string spaces(length, ' '), letters(length, 'a');
    EXPECT_THAT(pieces("\\s+(?!\\S)|\\s+", spaces + "b"), testing::ElementsAre(spaces.substr(1), " ", "b")) << length;
    EXPECT_THAT(pieces("a+$", letters + "\nb"), testing::ElementsAre(letters, "\nb")) << length;
    EXPECT_THAT(pieces("a+$", letters + "b"), testing::ElementsAre(letters + "b")) << length;
    EXPECT_THAT(pieces("a+b|a", letters + "b"), testing::ElementsAre(letters + "b")) << length;
    EXPECT_THAT(pieces("a++\\b", letters + "\u00e9 a"), testing::ElementsAre(letters + "\u00e9 ", "a")) << length;
    EXPECT_THAT(pieces("(?<=a)\u00e9", letters + "\u00e9"), testing::ElementsAre(letters, "\u00e9")) << length;
  }
}

TEST(Pattern, TimeIsLinearInTheText) {
  const auto words = [](int count) { pieces("\\p{L}+|\\s+(?!\\S)|\\s+", std::string(count, 'a') + " b"); };
  EXPECT_LT(test::growth(words, 100'000, 1'000'000), 40) << "10 times the text";
  // Every place looks at all that follows: the square of the length, so that it is refused.
  EXPECT_THROW(pieces("\\p{L}*+\\d|.", std::string(20'000, 'a')), io::InputError);
}

}  // namespace
}  // namespace openmsa::tokenizer
