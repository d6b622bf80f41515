// Text for training and evaluation: files and folders as bytes, split by file into a training and a held-out part.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace openmsa::lm {

enum class CorpusPart { kTraining, kHeldOut };

/// One file inside Text::bytes.
struct TextFile {
  std::string name;  // relative to the path that it was found under
  std::size_t begin;
  std::size_t end;
};

/// Files one after the other, a zero byte after each.
struct Text {
  std::string bytes;
  std::vector<TextFile> files;
};

/// Reads one part of the files under `paths`. A file belongs to the held-out part when a hash of its name relative to
/// the given path says so, about one in twenty; of few files at least one is held out and one is not, and of a single
/// file the last twentieth. Inside folders, symbolic links, unreadable files and binaries (a zero byte within the first 8 KiB) are
/// skipped. InputError: a path that does not exist, or a part without text.
Text load_text(const std::vector<std::filesystem::path>& paths, CorpusPart part);

/// Source code found on most machines with a compiler: /usr/include and Python's standard library, those that exist.
/// InputError when neither does.
std::vector<std::filesystem::path> default_text_paths();

}  // namespace openmsa::lm
