#include "io/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <stdexcept>
#include <string>
#include <system_error>

namespace openmsa::io {
namespace {

namespace fs = std::filesystem;

fs::path without_links(const fs::path& path) {
  std::error_code error;
  const fs::path resolved = fs::canonical(path, error);
  return error ? path : resolved;
}

}  // namespace

bool is_device_or_pipe(const fs::path& path) {
  std::error_code ignored;
  const fs::file_status status = fs::status(path, ignored);
  return fs::exists(status) && !fs::is_regular_file(status) && !fs::is_directory(status);
}

AtomicFile::AtomicFile(const fs::path& path) : path_(path) {
  if (is_device_or_pipe(path_)) {
    descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CLOEXEC);
  } else {
    path_ = without_links(path_);
    if (fs::is_directory(path_)) {
      errno = EISDIR;
      fail("cannot create");
    }
    temporary_ = path_;
    temporary_ += ".partial-" + std::to_string(::getpid());
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  }
  if (descriptor_ < 0) fail("cannot create");
}

AtomicFile::~AtomicFile() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::write(const void* data, std::size_t bytes) {
  constexpr std::size_t kLargestWrite = std::size_t{1} << 30;  // Linux stops at 2 GiB - 4 KiB
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = ::write(descriptor_, next, std::min(bytes, kLargestWrite));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail("cannot write");
    next += written;
    bytes -= static_cast<std::size_t>(written);
  }
}

void AtomicFile::commit() {
  if (!temporary_.empty()) {
    if (::fsync(descriptor_) != 0) fail("cannot write");
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail("cannot create");
  }
  ::close(descriptor_);
  descriptor_ = -1;
}

void AtomicFile::fail(const char* action) const {
  throw std::runtime_error(std::string(action) + " " + path_.string() + ": " + std::generic_category().message(errno));
}

}  // namespace openmsa::io
