// Output files that appear whole or not at all.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string_view>

namespace openmsa::io {

/// Neither a regular file nor a folder: it may block a reader, or never end.
bool is_device_or_pipe(const std::filesystem::path& path);

/// Writes beside `path` and renames over it in commit(); the destructor removes what was not committed. Symbolic links
/// are followed, and devices and pipes (such as /dev/stdout) are written directly, since they cannot be replaced.
/// Every function throws std::runtime_error with the path and the system's reason.
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
  [[noreturn]] void fail(const char* action) const;

  std::filesystem::path path_;
  std::filesystem::path temporary_;  // empty: `path_` itself is open
  int descriptor_ = -1;
};

}  // namespace openmsa::io
