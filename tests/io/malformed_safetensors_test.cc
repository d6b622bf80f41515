// Files that are wrong, one way each: refused with a message that names the file, and nothing read out of bounds.
#include <gmock/gmock.h>

#include <fstream>

#include "io/error.h"
#include "io/safetensors.h"
#include "support/temporary_directory.h"

namespace openmsa::io {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

struct Malformed {
  const char* name;
  std::string header;
  std::size_t data_bytes;
  const char* message;
};

std::ostream& operator<<(std::ostream& out, const Malformed& file) { return out << file.name; }

void write_file(const std::string& path, std::uint64_t length, const std::string& rest) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(&length), 8);
  file << rest;
}

std::string entry(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

std::string one(const std::string& value) { return R"({"a":)" + value + "}"; }

std::string two(const std::string& a, const std::string& b) { return R"({"a":)" + a + R"(,"b":)" + b + "}"; }

std::string list_of_ones(int count) {
  std::string list = "[1";
  for (int i = 1; i < count; ++i) list += ",1";
  return list + "]";
}

class MalformedSafetensors : public testing::TestWithParam<Malformed> {};

TEST_P(MalformedSafetensors, IsRefused) {
  const test::TemporaryDirectory directory;
  const std::string path = directory / "bad.safetensors";
  write_file(path, GetParam().header.size(), GetParam().header + std::string(GetParam().data_bytes, '\0'));
  EXPECT_THAT([&] { SafetensorsFile file(path); },
              ThrowsMessage<InputError>(AllOf(HasSubstr(path), HasSubstr(GetParam().message))));
}

const std::string kGood = entry("F32", "[2]", "[0,8]");

INSTANTIATE_TEST_SUITE_P(
    Kinds, MalformedSafetensors,
    testing::Values(
        Malformed{"NoJson", "hello", 0, "no JSON object"}, Malformed{"Empty", "", 0, "no JSON object"},
        Malformed{"Array", "[1]", 0, "no JSON object"}, Malformed{"Truncated", R"({"a":{"dtype)", 0, "no JSON object"},
        Malformed{"TrailingText", one(kGood) + "x", 8, "no JSON object"},
        Malformed{"NoUtf8", "{\"\xff\":" + kGood + "}", 8, "no JSON object"},
        Malformed{"DeepArray", R"({"a":)" + std::string(1000000, '['), 0, "nested too deeply"},
        Malformed{"LongShape", one(entry("F32", list_of_ones(70000), "[0,4]")), 4, "'a': more than 65536 values"},
        Malformed{"DeepObject", R"({"a":{"shape":[[1]]}})", 0, "nested too deeply"},
        Malformed{"NoObject", one("7"), 0, "expected an object"},
        Malformed{"NoDtype", one(R"({"shape":[2],"data_offsets":[0,8]})"), 8, "'dtype' is missing"},
        Malformed{"NoShape", one(R"({"dtype":"F32","data_offsets":[0,8]})"), 8, "'shape' is missing"},
        Malformed{"NoOffsets", one(R"({"dtype":"F32","shape":[2]})"), 8, "'data_offsets' is missing"},
        Malformed{"DtypeNumber", one(R"({"dtype":32,"shape":[2],"data_offsets":[0,8]})"), 8, "'dtype' is no string"},
        Malformed{"ShapeNumber", one(entry("F32", "2", "[0,8]")), 8, "'shape' is no array"},
        Malformed{"NegativeShape", one(entry("F32", "[-2]", "[0,8]")), 8, "expected a whole number"},
        Malformed{"FractionalShape", one(entry("F32", "[2.0]", "[0,8]")), 8, "expected a whole number"},
        Malformed{"HugeShape", one(entry("F32", "[18446744073709551615]", "[0,8]")), 8, "number too large"},
        Malformed{"HugerShape", one(entry("F32", "[184467440737095516150]", "[0,8]")), 8, "expected a whole number"},
        Malformed{"ShapeProductOverflows", one(entry("F32", "[4294967296,4294967296]", "[0,0]")), 0, "too large"},
        Malformed{"EmptyShapeOverflows", one(entry("F32", "[0,4294967296,4294967296]", "[0,0]")), 0, "too large"},
        Malformed{"ByteCountOverflows", one(entry("F32", "[4611686018427387904]", "[0,0]")), 0, "dtype and shape need"},
        Malformed{"OneOffset", one(entry("F32", "[2]", "[8]")), 8, "'data_offsets' is no pair"},
        Malformed{"OffsetsSwapped", one(entry("F32", "[2]", "[8,0]")), 8, "do not fit"},
        Malformed{"OffsetsPastEnd", one(entry("F32", "[2]", "[0,8]")), 7, "do not fit"},
        Malformed{"WrongSize", one(entry("F32", "[3]", "[0,8]")), 8, "dtype and shape need"},
        Malformed{"Overlap", two(kGood, entry("F32", "[2]", "[4,12]")), 12, "overlap"},
        Malformed{"Gap", two(kGood, entry("F32", "[1]", "[12,16]")), 16, "no tensor holds"},
        Malformed{"UnusedTail", one(kGood), 9, "no tensor holds"},
        Malformed{"MetadataNumber", R"({"__metadata__":{"a":1}})", 0, "is no string"},
        Malformed{"MetadataList", R"({"__metadata__":[]})", 0, "__metadata__ is no object"}),
    [](const auto& info) { return info.param.name; });

TEST(MalformedSafetensors, RepeatedNameIsRefused) {
  const test::TemporaryDirectory directory;
  const std::string header = R"({"a":)" + kGood + R"(,"a":)" + entry("F32", "[1]", "[8,12]") + "}";
  write_file(directory / "bad", header.size(), header + std::string(12, '\0'));
  EXPECT_THAT([&] { SafetensorsFile file(directory / "bad"); },
              ThrowsMessage<InputError>(HasSubstr("repeats the name 'a'")));
}

TEST(MalformedSafetensors, HeaderLengthMustFit) {
  const test::TemporaryDirectory directory;
  for (const std::uint64_t length : {std::uint64_t{100}, std::uint64_t{200000000}, ~std::uint64_t{0}}) {
    write_file(directory / "bad", length, "{}");
    EXPECT_THAT([&] { SafetensorsFile file(directory / "bad"); }, ThrowsMessage<InputError>(HasSubstr("does not fit")));
  }
}

TEST(MalformedSafetensors, NoFile) {
  const test::TemporaryDirectory directory;
  std::ofstream(directory / "short") << "1234567";
  std::ofstream(directory / "empty").flush();
  EXPECT_THROW(SafetensorsFile(directory / "short"), InputError);
  EXPECT_THROW(SafetensorsFile(directory / "empty"), InputError);
  EXPECT_THROW(SafetensorsFile(directory / "absent"), InputError);
  EXPECT_THROW(SafetensorsFile(directory.path()), InputError);
}

TEST(MalformedSafetensors, UnknownTypesAreLeftAlone) {
  const test::TemporaryDirectory directory;
  const std::string header = two(kGood, entry("F4", "[16]", "[8,16]"));
  write_file(directory / "new", header.size(), header + std::string(16, '\0'));
  const SafetensorsFile file(directory / "new");
  EXPECT_EQ(file.at("a").to_float().size(), 2u);
  EXPECT_THROW(file.at("b").to_float(), InputError);
}

}  // namespace
}  // namespace openmsa::io
