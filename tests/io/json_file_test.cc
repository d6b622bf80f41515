#include "io/json_file.h"

#include <gtest/gtest.h>

#include <fstream>

#include "io/error.h"
#include "support/growth.h"
#include "support/temporary_directory.h"

namespace openmsa::io {
namespace {

using test::TemporaryDirectory;

TEST(JsonFile, RoundTrip) {
  const TemporaryDirectory directory;
  const nlohmann::ordered_json value = {{"z", 1.5}, {"a", {1, 2}}, {"text", "\"<\n"}};
  write_json(directory / "x.json", value);
  EXPECT_EQ(nlohmann::ordered_json(read_json(directory / "x.json")), nlohmann::ordered_json(nlohmann::json(value)));
}

TEST(JsonFile, BytesThatAreNoUtf8AreReplaced) {
  const TemporaryDirectory directory;
  write_json(directory / "x.json", "a\xff");
  EXPECT_EQ(read_json(directory / "x.json"), "a\xef\xbf\xbd");
}

TEST(JsonFile, RefusesWhatIsNoJson) {
  const TemporaryDirectory directory;
  std::ofstream(directory / "bad.json") << "{\"a\":";
  std::ofstream(directory / "empty.json").flush();
  EXPECT_THROW(read_json(directory / "bad.json"), InputError);
  EXPECT_THROW(read_json(directory / "empty.json"), InputError);
  EXPECT_THROW(read_json(directory / "absent.json"), InputError);
  EXPECT_THROW(read_json(directory.path()), InputError);
}

/// Copying a value walks down its nesting.
TEST(JsonFile, RefusesDeepNesting) {
  const auto nested = [](std::size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_NO_THROW(parse_json(nested(50)));
  EXPECT_THROW(parse_json(nested(100)), InputError);
  EXPECT_THROW(parse_json(std::string(1 << 20, '[')), InputError);
}

/// A value takes eight times the memory of its two characters.
TEST(JsonFile, RefusesMoreValuesThanMemoryWouldHold) {
  std::string zeros = "[0";
  for (int i = 0; i < 5'000'000; ++i) zeros += ",0";
  EXPECT_THROW(parse_json(zeros + "]"), InputError);
}

TEST(JsonFile, TimeIsLinearInTheNumberOfObjects) {
  const auto parse = [](int count) {
    std::string text = "{\"0\":{}";
    for (int i = 1; i < count; ++i) text += ",\"" + std::to_string(i) + "\":{}";
    EXPECT_EQ(parse_json(text + "}").size(), static_cast<std::size_t>(count));
  };
  EXPECT_LT(test::growth(parse, 2000, 20000), 40) << "10 times the objects";
}

TEST(JsonFile, RefusesDevicesAndHugeFiles) {
  EXPECT_THROW(read_json("/dev/zero"), InputError);
  const TemporaryDirectory directory;
  std::ofstream(directory / "huge.json").flush();
  std::filesystem::resize_file(directory / "huge.json", std::uintmax_t{1} << 30);
  EXPECT_THROW(read_json(directory / "huge.json"), InputError);
}

TEST(JsonFile, EmptyFilesAreText) {
  const TemporaryDirectory directory;
  std::ofstream(directory / "empty").flush();
  EXPECT_EQ(read_text(directory / "empty"), "");
}

}  // namespace
}  // namespace openmsa::io
