#include "lm/training/corpus.h"

#include <gtest/gtest.h>

#include <fstream>
#include <set>

#include "io/error.h"
#include "lm/training/window_sampler.h"
#include "support/temporary_directory.h"
#include "tokenizer/tokenizer.h"

namespace openmsa::test {
namespace {

void write_file(const std::filesystem::path& path, const std::string& bytes) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << bytes;
}

std::set<std::string> names(const lm::Text& text) {
  std::set<std::string> result;
  for (const lm::TextFile& file : text.files) result.insert(file.name);
  return result;
}

TEST(Corpus, SplitsByFileTheSameWayWhereverTheFolderLies) {
  const TemporaryDirectory directory;
  for (const char* folder : {"here", "there/deeper"}) {
    for (int i = 0; i < 400; ++i) {
      write_file(directory.path() / folder / ("sub" + std::to_string(i % 7)) / (std::to_string(i) + ".h"),
                 "file " + std::to_string(i));
    }
  }
  const lm::Text training = lm::load_text({directory.path() / "here"}, lm::CorpusPart::kTraining);
  const lm::Text held_out = lm::load_text({directory.path() / "here"}, lm::CorpusPart::kHeldOut);
  EXPECT_EQ(training.files.size() + held_out.files.size(), 400u);
  EXPECT_GT(held_out.files.size(), 5u);
  EXPECT_LT(held_out.files.size(), 45u);
  for (const std::string& name : names(held_out)) EXPECT_FALSE(names(training).contains(name));
  EXPECT_EQ(names(lm::load_text({directory.path() / "there/deeper"}, lm::CorpusPart::kHeldOut)), names(held_out));
  const lm::TextFile& last = training.files.back();
  EXPECT_EQ(training.bytes.substr(last.begin, 5), "file ");
  EXPECT_EQ(training.bytes[last.end], '\0');
}

TEST(Corpus, SkipsBinariesAndLinks) {
  const TemporaryDirectory directory;
  write_file(directory / "a.txt", "text");
  write_file(directory / "b.txt", "more");
  write_file(directory / "c.o", std::string("\x7f"
                                            "ELF\0\0",
                                            6));
  std::filesystem::create_symlink(directory / "a.txt", directory / "link.txt");
  const lm::Text training = lm::load_text({directory.path()}, lm::CorpusPart::kTraining);
  const lm::Text held_out = lm::load_text({directory / "a.txt", directory / "b.txt"}, lm::CorpusPart::kHeldOut);
  EXPECT_FALSE(names(training).contains("c.o"));
  EXPECT_FALSE(names(training).contains("link.txt"));
  EXPECT_EQ(held_out.files.size(), 1u);
}

TEST(Corpus, HoldsOutOneOfTwoFilesOfTheSameName) {
  const TemporaryDirectory directory;
  for (int i = 0; i < 60; ++i) {  // some of these names belong to the held-out part
    const std::string name = std::to_string(i) + ".h";
    const auto path = [&](const char* folder) { return directory.path() / (folder + std::to_string(i)); };
    write_file(path("a") / name, "one");
    write_file(path("b") / name, "two");
    const auto size = [&](lm::CorpusPart part) { return lm::load_text({path("a"), path("b")}, part).files.size(); };
    EXPECT_EQ(size(lm::CorpusPart::kTraining), 1u) << name;
    EXPECT_EQ(size(lm::CorpusPart::kHeldOut), 1u) << name;
  }
}

TEST(Corpus, HoldsOutTheEndOfASingleFile) {
  const TemporaryDirectory directory;
  write_file(directory / "book.txt", std::string(1900, 'a') + std::string(100, 'z'));
  const std::vector<std::filesystem::path> paths = {directory / "book.txt"};
  EXPECT_EQ(lm::load_text(paths, lm::CorpusPart::kTraining).bytes, std::string(1900, 'a') + '\0');
  EXPECT_EQ(lm::load_text(paths, lm::CorpusPart::kHeldOut).bytes, std::string(100, 'z') + '\0');
}

TEST(Corpus, RefusesWhatIsNotThere) {
  const TemporaryDirectory directory;
  EXPECT_THROW(lm::load_text({directory / "absent"}, lm::CorpusPart::kTraining), io::InputError);
  EXPECT_THROW(lm::load_text({directory.path()}, lm::CorpusPart::kTraining), io::InputError);
}

TEST(WindowSampler, DependsOnSeedAndStepAlone) {
  std::string text;
  for (int i = 0; i < 5000; ++i) text += static_cast<char>(i * i % 251);
  const lm::WindowSampler sampler(text, {64, 64, 16}, 1);
  const lm::Batch batch = sampler.batch(5);
  EXPECT_EQ(batch.inputs.size(), 144u);
  EXPECT_EQ(batch.inputs, lm::WindowSampler(text, {64, 64, 16}, 1).batch(5).inputs);
  EXPECT_NE(batch.inputs, sampler.batch(6).inputs);
  EXPECT_NE(batch.inputs, lm::WindowSampler(text, {64, 64, 16}, 2).batch(5).inputs);
  for (std::size_t i = 0; i + 1 < 64; ++i) EXPECT_EQ(batch.targets[i], batch.inputs[i + 1]);
  EXPECT_THROW(lm::WindowSampler("short", {5}, 1), io::InputError);
  EXPECT_EQ(lm::WindowSampler("short", {4}, 1).batch(1).targets, tokenizer::ByteTokenizer().encode("hort"));
}

}  // namespace
}  // namespace openmsa::test
