// Files that are right: what goes in comes out, as the format describes it.
#include "io/safetensors.h"

#include <gmock/gmock.h>

#include <cstring>
#include <fstream>

#include "io/error.h"
#include "io/json_file.h"
#include "io/mapped_file.h"
#include "support/growth.h"
#include "support/temporary_directory.h"

namespace openmsa::io {
namespace {

using test::TemporaryDirectory;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::ThrowsMessage;

template <class T>
std::vector<T> values(const StoredTensor& tensor) {
  std::vector<T> result(tensor.size());
  std::memcpy(result.data(), tensor.data, tensor.bytes);
  return result;
}

TEST(Safetensors, RoundTrip) {
  const TemporaryDirectory directory;
  const std::vector<float> floats = {1.5f, -2.0f, 0.0f, 3e38f, 5.0f, 6.0f};
  const std::vector<std::int32_t> ints = {-1, 7};
  const std::vector<std::int64_t> longs = {1LL << 40};
  const std::vector<std::uint16_t> halves = {0x3c00, 0x0001, 0xfc00};
  SafetensorsWriter writer;
  writer.add("floats", ElementType::kF32, {2, 3}, floats.data());
  writer.add("ints", ElementType::kI32, {2}, ints.data());
  writer.add("a \"quoted\"\n name", ElementType::kI64, {1}, longs.data());
  writer.add("halves", ElementType::kF16, {3}, halves.data());
  writer.add("scalar", ElementType::kF32, {}, floats.data());
  writer.add("empty", ElementType::kF32, {0, 4}, nullptr);
  writer.set_metadata("format", "pt");
  writer.write(directory / "x.safetensors");

  const SafetensorsFile file(directory / "x.safetensors");
  EXPECT_EQ(file.tensors().size(), 6u);
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.at("floats").shape, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(file.at("floats").type_name, "F32");
  EXPECT_EQ(values<float>(file.at("floats")), floats);
  EXPECT_EQ(values<std::int32_t>(file.at("ints")), ints);
  EXPECT_EQ(values<std::int64_t>(file.at("a \"quoted\"\n name")), longs);
  EXPECT_THAT(file.at("halves").to_float(), ElementsAre(1.0f, 0x1p-24f, -std::numeric_limits<float>::infinity()));
  EXPECT_EQ(file.at("scalar").size(), 1);
  EXPECT_EQ(file.at("empty").size(), 0);
  EXPECT_EQ(directory.num_entries(), 1u);
}

TEST(Safetensors, DataIsAlignedAndWithoutGaps) {
  const TemporaryDirectory directory;
  const std::vector<std::uint16_t> narrow = {1, 2, 3};
  const std::vector<double> wide = {1.0, 2.0};
  SafetensorsWriter writer;
  writer.add("a", ElementType::kBF16, {3}, narrow.data());
  writer.add("b", ElementType::kF64, {2}, wide.data());
  writer.write(directory / "x.safetensors");

  const std::string text = read_text(directory / "x.safetensors");
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, text.data(), 8);
  EXPECT_EQ(text[8], '{');
  EXPECT_EQ((8 + header_bytes) % 64, 0u);
  EXPECT_EQ(text.size(), 8 + header_bytes + 16 + 6);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(SafetensorsFile(directory / "x.safetensors").at("b").data) % 8, 0u);
}

TEST(Safetensors, MisalignedDataIsReadAligned) {
  const TemporaryDirectory directory;
  const std::string header = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  const std::uint64_t length = header.size() + (header.size() % 2 == 0 ? 1 : 0);
  const float data[] = {1.0f, -3.0f};
  std::ofstream file(directory / "x.safetensors", std::ios::binary);
  file.write(reinterpret_cast<const char*>(&length), 8);
  file << header << std::string(length - header.size(), ' ');
  file.write(reinterpret_cast<const char*>(data), 8);
  file.close();

  const SafetensorsFile read(directory / "x.safetensors");
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(read.at("a").view().data) % sizeof(float), 0u);
  EXPECT_THAT(read.at("a").to_float(), ElementsAre(1.0f, -3.0f));
}

TEST(Safetensors, ViewsAreRowMajor) {
  const TemporaryDirectory directory;
  const std::vector<float> data(24);
  SafetensorsWriter writer;
  writer.add("a", ElementType::kF32, {2, 3, 4}, data.data());
  writer.add("five", ElementType::kF32, {1, 1, 1, 1, 24}, data.data());
  writer.add("long", ElementType::kI64, {3}, data.data());
  writer.write(directory / "x.safetensors");

  const SafetensorsFile file(directory / "x.safetensors");
  const openmsa_tensor view = file.at("a").view();
  EXPECT_EQ(view.dtype, OPENMSA_FLOAT32);
  EXPECT_EQ(view.rank, 3);
  EXPECT_EQ(view.strides[0], 12);
  EXPECT_THROW(file.at("five").view(), InputError);
  EXPECT_THROW(file.at("long").view(), InputError);
  EXPECT_THROW(file.at("long").to_float(), InputError);
  EXPECT_THAT([&] { file.at("absent"); }, ThrowsMessage<InputError>(HasSubstr("no tensor 'absent'")));
}

TEST(Safetensors, WriterRefusesNamesThatTheFormatCannotHold) {
  SafetensorsWriter writer;
  const float data[] = {0};
  writer.add("a", ElementType::kF32, {1}, data);
  EXPECT_THROW(writer.add("a", ElementType::kF32, {1}, data), std::invalid_argument);
  EXPECT_THROW(writer.add("__metadata__", ElementType::kF32, {1}, data), std::invalid_argument);
  EXPECT_THROW(writer.add("b", ElementType::kF32, {-1}, data), std::invalid_argument);
}

/// A merged mixture of experts has twenty thousand tensors.
TEST(Safetensors, TimeIsLinearInTheNumberOfTensors) {
  const TemporaryDirectory directory;
  const auto write_and_read = [&](int count) {
    SafetensorsWriter writer;
    for (int i = 0; i < count; ++i) writer.add(std::to_string(i), ElementType::kF32, {0}, nullptr);
    writer.write(directory / "x");
    EXPECT_EQ(SafetensorsFile(directory / "x").tensors().size(), static_cast<std::size_t>(count));
  };
  EXPECT_LT(test::growth(write_and_read, 2000, 20000), 40) << "10 times the tensors";
}

/// Another process may truncate what is mapped, and then reading it raises SIGBUS.
TEST(SafetensorsDeathTest, AFileThatShrinksIsNamed) {
  const TemporaryDirectory directory;
  const std::vector<float> zeros(1 << 16);
  SafetensorsWriter writer;
  writer.add("zeros", ElementType::kF32, {1 << 16}, zeros.data());
  writer.write(directory / "x");
  const auto read_what_shrinks = [&] {
    exit_when_mapped_files_shrink("test");
    const SafetensorsFile other(directory / "x"), file(directory / "x");
    std::filesystem::resize_file(directory / "x", 100);
    file.at("zeros").to_float();
  };
  EXPECT_EXIT(read_what_shrinks(), testing::ExitedWithCode(1),
              "^test: " + (directory / "x") + ": became shorter while it was read");
}

}  // namespace
}  // namespace openmsa::io
