// Output files that appear whole or not at all.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string_view>

namespace openmsa::io {

/// Neither a regular file nor a folder: it may block a reader, or never end.
bool is_device_or_pipe(const std::filesystem::path& path);

/// The file that writing to `path` makes or replaces: links are followed, to files that do not exist yet too.
std::filesystem::path output_target(const std::filesystem::path& path);

/// Throws what an AtomicFile would, before there is anything to write.
void require_creatable(const std::filesystem::path& path);

/// Writes beside `path` and renames over it in commit(); the destructor removes what was not committed, and the next
/// AtomicFile in the folder what a killed process has left. Symbolic links are followed, a file that exists keeps its
/// permissions, and devices and pipes (such as /dev/stdout) are written directly, since they cannot be replaced. Every
/// function throws std::runtime_error with the path and the system's reason.
class AtomicFile {
 public:
  explicit AtomicFile(const std::filesystem::path& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, std::size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  void commit();

 private:
  void open_temporary();
  [[noreturn]] void fail(const char* action) const;

  std::filesystem::path path_;
  std::filesystem::path temporary_;  // empty: `path_` itself is open
  int descriptor_ = -1;
};

}  // namespace openmsa::io
