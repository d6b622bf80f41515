#include "io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstring>
#include <mutex>
#include <string>
#include <system_error>

#include "io/error.h"

namespace openmsa::io {
namespace {

/// What a signal handler may read of a mapping: memory that never moves and is never freed, only used again.
struct Mapping {
  std::atomic<const std::byte*> begin{nullptr};  // null: not in use
  std::atomic<std::uint64_t> bytes{0};
  std::atomic<Mapping*> next{nullptr};
  char path[PATH_MAX] = {};
};

std::atomic<Mapping*> first_mapping{nullptr};
std::atomic<const char*> program_name{nullptr};
std::mutex changing;  // of the list; the handler only reads it

Mapping& unused_mapping() {
  for (Mapping* mapping = first_mapping; mapping; mapping = mapping->next) {
    if (!mapping->begin) return *mapping;
  }
  auto* mapping = new Mapping;
  mapping->next = first_mapping.load();
  first_mapping = mapping;
  return *mapping;
}

Mapping& remember(const std::filesystem::path& path, const std::byte* begin, std::uint64_t bytes) {
  const std::lock_guard lock(changing);
  Mapping& mapping = unused_mapping();
  const std::string name = path.string();
  const std::size_t length = std::min<std::size_t>(name.size(), sizeof mapping.path - 1);
  std::transform(name.begin(), name.begin() + static_cast<std::ptrdiff_t>(length), mapping.path,
                 [](unsigned char c) { return static_cast<char>(c < ' ' || c == 0x7f ? ' ' : c); });
  mapping.path[length] = '\0';
  mapping.bytes = bytes;
  mapping.begin = begin;
  return mapping;
}

const Mapping* mapping_of(const std::byte* address) {
  for (const Mapping* mapping = first_mapping; mapping; mapping = mapping->next) {
    const std::byte* begin = mapping->begin;
    if (begin && address >= begin && address < begin + mapping->bytes) return mapping;
  }
  return nullptr;
}

/// Only what may be called in a signal handler.
void on_bus_error(int, siginfo_t* info, void*) {
  static std::atomic_flag has_begun;
  const Mapping* mapping = mapping_of(static_cast<const std::byte*>(info->si_addr));
  if (!mapping) {
    std::signal(SIGBUS, SIG_DFL);  // and the instruction that failed runs again
    return;
  }
  while (has_begun.test_and_set()) ::pause();  // another thread ends the process
  for (const char* part :
       {program_name.load(), ": ", static_cast<const char*>(mapping->path), ": became shorter while it was read\n"}) {
    if (::write(STDERR_FILENO, part, std::strlen(part)) < 0) break;
  }
  ::_exit(1);
}

}  // namespace

MappedFile map_file(const std::filesystem::path& path, std::uint64_t least) {
  const auto fail = [](const std::string& reason) { return InputError("cannot read: " + reason); };
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) throw fail(std::generic_category().message(errno));
  struct stat status {};
  const bool regular = ::fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode);
  const auto bytes = static_cast<std::uint64_t>(status.st_size);
  void* address = MAP_FAILED;
  int map_error = 0;
  if (regular && bytes >= least) {
    address = ::mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, descriptor, 0);
    map_error = errno;
  }
  ::close(descriptor);
  if (!regular) throw fail("not a regular file");
  if (bytes < least) throw fail("too short");
  if (address == MAP_FAILED) throw fail(std::generic_category().message(map_error));
  const auto* begin = static_cast<const std::byte*>(address);
  Mapping& mapping = remember(path, begin, bytes);
  const auto unmap = [&mapping, bytes](const std::byte* data) {
    mapping.begin = nullptr;
    ::munmap(const_cast<std::byte*>(data), bytes);
  };
  return {std::shared_ptr<const std::byte>(begin, unmap), bytes};
}

void exit_when_mapped_files_shrink(const char* program) {
  program_name = program;
  struct sigaction action {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO;
  ::sigaction(SIGBUS, &action, nullptr);
}

}  // namespace openmsa::io
