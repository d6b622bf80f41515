#include "tokenizer/pattern.h"

#include <gmock/gmock.h>

#include "io/error.h"

namespace openmsa::tokenizer {
namespace {

std::vector<std::string> pieces(const std::string& regex, const std::string& text) {
  std::vector<std::string> result;
  Pattern(regex).split(text, [&](std::string_view piece) { result.emplace_back(piece); });
  return result;
}

TEST(Pattern, KeepsMatchesAndWhatLiesBetween) {
  EXPECT_THAT(pieces("[0-9]+", "ab12cd3"), testing::ElementsAre("ab", "12", "cd", "3"));
  EXPECT_THAT(pieces("x", "abc"), testing::ElementsAre("abc"));
  EXPECT_THAT(pieces("x*", "axxb"), testing::ElementsAre("a", "xx", "b"));
  EXPECT_THAT(pieces("x", ""), testing::ElementsAre());
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

}  // namespace
}  // namespace openmsa::tokenizer
