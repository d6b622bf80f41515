// Files mapped read-only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>

namespace openmsa::io {

struct MappedFile {
  std::shared_ptr<const std::byte> data;
  std::uint64_t bytes = 0;
};

/// The whole of a regular file with at least `least` bytes; InputError: the reason, without the path.
MappedFile map_file(const std::filesystem::path& path, std::uint64_t least);

/// A file that another process cuts short while it is mapped raises SIGBUS where it is read. From this call on that
/// means one line on stderr that begins with `program` and names the file, and exit status 1; other bus errors stay
/// what they are. `program` must live as long as the process.
void exit_when_mapped_files_shrink(const char* program);

}  // namespace openmsa::io
