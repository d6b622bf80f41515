#include "msa/msa.h"

#include <gmock/gmock.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdlib>

#include "io/json_file.h"

namespace openmsa::test {
namespace {

std::string quoted(const std::string& argument) {
  std::string result = "'";
  for (char c : argument) result += c == '\'' ? "'\\''" : std::string(1, c);
  result += "'";
  return result;
}

io::ElementType element_type(openmsa_dtype dtype) {
  switch (dtype) {
    case OPENMSA_FLOAT64:
      return io::ElementType::kF64;
    case OPENMSA_BFLOAT16:
      return io::ElementType::kBF16;
    case OPENMSA_FLOAT16:
      return io::ElementType::kF16;
    case OPENMSA_INT32:
      return io::ElementType::kI32;
    default:
      return io::ElementType::kF32;
  }
}

}  // namespace

MsaRun MsaTest::msa(const std::vector<std::string>& arguments) const {
  const TemporaryDirectory streams;
  std::string command = quoted(OPENMSA_MSA_BINARY);
  for (const std::string& argument : arguments) command.append(" ").append(quoted(argument));
  command += " </dev/null >" + quoted(streams / "out") + " 2>" + quoted(streams / "err");
  const int status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, io::read_text(streams / "out"), io::read_text(streams / "err")};
}

void MsaTest::write(const Layer& layer, const std::vector<std::string>& names, const std::string& file) const {
  io::SafetensorsWriter writer;
  for (const std::string& name : names) {
    const auto found = layer.tensors.find(name);
    if (found == layer.tensors.end()) continue;
    writer.add(name, element_type(found->second.dtype()), found->second.shape(), found->second.bytes().data());
  }
  writer.write(directory_ / file);
}

io::SafetensorsFile MsaTest::attend(std::vector<std::string> options) const {
  options.insert(options.begin(), {"attend", "--input", directory_ / "in", "--output", directory_ / "out"});
  const MsaRun run = msa(options);
  EXPECT_EQ(run.status, 0) << run.err;
  EXPECT_EQ(run.err, "");
  return io::SafetensorsFile(directory_ / "out");
}

void expect_refusal(const MsaRun& run, const std::string& message, int status) {
  EXPECT_EQ(run.status, status);
  EXPECT_EQ(run.out, "");
  EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
  EXPECT_THAT(run.err, testing::StartsWith("msa: "));
  EXPECT_THAT(run.err, testing::HasSubstr(message));
}

void expect_same(const io::SafetensorsFile& file, const std::string& name, const Buffer& expected) {
  ASSERT_TRUE(file.contains(name)) << name;
  const io::StoredTensor& stored = file.at(name);
  EXPECT_EQ(stored.type, element_type(expected.dtype())) << name;
  EXPECT_EQ(stored.shape, expected.shape()) << name;
  ASSERT_EQ(stored.bytes, expected.bytes().size()) << name;
  EXPECT_TRUE(std::equal(expected.bytes().begin(), expected.bytes().end(), stored.data)) << name;
}

}  // namespace openmsa::test
