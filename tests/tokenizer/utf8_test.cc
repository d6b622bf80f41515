#include "tokenizer/utf8.h"

#include <gtest/gtest.h>

namespace openmsa::tokenizer {
namespace {

TEST(Utf8, KnowsWhereCharactersEnd) {
  EXPECT_EQ(utf8_length("a"), 1u);
  EXPECT_EQ(utf8_length("\u00e9x"), 2u);
  EXPECT_EQ(utf8_length("\u20ac"), 3u);
  EXPECT_EQ(utf8_length("\U0001f600"), 4u);
  EXPECT_EQ(utf8_length("\U0010ffff"), 4u);
  for (const char* bad : {"", "\x80", "\xc3", "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80",
                          "\xf0\x80\x80\x80", "\xf5\x80\x80\x80", "\xe2\x82", "\xe2\x28\xa1"}) {
    EXPECT_EQ(utf8_length(bad), 0u);
  }
  EXPECT_EQ(utf8_prefix("a\u20ac\xff z"), "a\u20ac");
}

TEST(Utf8Stream, HoldsBackHalfACharacter) {
  Utf8Stream stream;
  EXPECT_EQ(stream.push("a\xe2"), "a");
  EXPECT_EQ(stream.push("\x82"), "");
  EXPECT_EQ(stream.push("\xac!"), "\u20ac!");
  EXPECT_EQ(stream.finish(), "");
}

TEST(Utf8Stream, LosesNoBytes) {
  const std::string text = "a\xff\xe2\x82 \xf0\x9f\x98\x80\xc3";
  Utf8Stream stream;
  std::string shown;
  for (const char byte : text) shown += stream.push({&byte, 1});
  EXPECT_EQ(shown, text.substr(0, text.size() - 1));
  EXPECT_EQ(stream.finish(), "\xc3");
}

}  // namespace
}  // namespace openmsa::tokenizer
