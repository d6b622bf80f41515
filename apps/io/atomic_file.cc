#include "io/atomic_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <stdexcept>
#include <string>
#include <system_error>

namespace openmsa::io {
namespace {

namespace fs = std::filesystem;

/// Names of temporary files begin so. They do not hold the name of the output, which may be as long as a name can be.
constexpr const char* kTemporary = ".msa-partial-";

/// Removes the temporary files that nobody has locked, as their writers do: a lock, unlike a process number, means the
/// same in every container that shares the folder.
void remove_leftovers(const fs::path& folder) {
  std::error_code error;
  for (auto entry = fs::directory_iterator(folder, error); !error && entry != fs::directory_iterator();
       entry.increment(error)) {
    if (!entry->path().filename().native().starts_with(kTemporary)) continue;
    const int descriptor = ::open(entry->path().c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (descriptor < 0) continue;
    if (::flock(descriptor, LOCK_EX | LOCK_NB) == 0) ::unlink(entry->path().c_str());
    ::close(descriptor);
  }
}

/// Whether the file has a name still: another process may have taken it for a leftover before it was locked.
bool has_name(int descriptor) {
  struct stat status {};
  return ::fstat(descriptor, &status) == 0 && status.st_nlink > 0;
}

}  // namespace

bool is_device_or_pipe(const fs::path& path) {
  std::error_code ignored;
  const fs::file_status status = fs::status(path, ignored);
  return fs::exists(status) && !fs::is_regular_file(status) && !fs::is_directory(status);
}

fs::path output_target(const fs::path& path) {
  constexpr int kMostLinks = 40;  // as many as Linux follows
  fs::path target = path;
  std::error_code error;
  for (int i = 0; i < kMostLinks && fs::is_symlink(target, error); ++i) {
    const fs::path link = fs::read_symlink(target, error);
    if (error) break;
    target = target.parent_path() / link;  // `link` alone where it is absolute
  }
  target = fs::absolute(target, error);
  const fs::path resolved = fs::weakly_canonical(target, error);
  return error ? target : resolved;
}

void require_creatable(const fs::path& path) {
  if (!is_device_or_pipe(path)) const AtomicFile probe(path);  // a pipe may be opened once only
}

AtomicFile::AtomicFile(const fs::path& path) : path_(path) {
  if (is_device_or_pipe(path_)) {
    descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CLOEXEC);
    if (descriptor_ < 0) fail("cannot create");
    return;
  }
  path_ = output_target(path_);
  if (fs::is_directory(path_)) {
    errno = EISDIR;
    fail("cannot create");
  }
  if (path_.filename().native().size() > NAME_MAX) {
    errno = ENAMETOOLONG;
    fail("cannot create");
  }
  remove_leftovers(path_.parent_path());
  open_temporary();
}

void AtomicFile::open_temporary() {
  static std::atomic<int> counter = 0;
  while (true) {
    const std::string name = kTemporary + std::to_string(::getpid()) + "-" + std::to_string(counter++);
    temporary_ = path_.parent_path() / name;
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor_ < 0 && errno == EEXIST) continue;
    if (descriptor_ < 0) fail("cannot create");
    ::flock(descriptor_, LOCK_EX);  // where a file system has no locks, nothing is taken for a leftover either
    if (has_name(descriptor_)) break;
    ::close(descriptor_);
  }
  struct stat old {};
  if (::stat(path_.c_str(), &old) == 0) ::fchmod(descriptor_, old.st_mode & 07777);
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
