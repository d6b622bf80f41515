// Safetensors files of any content: opened and read whole, or refused with an InputError.
#include <sys/mman.h>
#include <unistd.h>

#include <stdexcept>
#include <string>

#include "io/error.h"
#include "io/safetensors.h"

namespace {

/// A file in memory with a path.
class MemoryFile {
 public:
  MemoryFile(const std::uint8_t* data, std::size_t size) : descriptor_(memfd_create("fuzz", 0)) {
    if (descriptor_ < 0 || write(descriptor_, data, size) != static_cast<ssize_t>(size)) {
      throw std::runtime_error("memfd_create");
    }
  }
  ~MemoryFile() { close(descriptor_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  std::string path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }

 private:
  int descriptor_;
};

/// Everything that a user of a stored tensor may do.
void read_all(const openmsa::io::StoredTensor& tensor) {
  unsigned int sum = 0;
  for (std::size_t i = 0; i < tensor.bytes; ++i) sum += static_cast<unsigned int>(tensor.data[i]);
  volatile unsigned int sink = sum;
  static_cast<void>(sink);
  if (tensor.size() < 0) throw std::logic_error("negative size");
  try {
    if (tensor.to_float().size() != static_cast<std::size_t>(tensor.size())) throw std::logic_error("size");
  } catch (const openmsa::io::InputError&) {
  }
  try {
    static_cast<void>(tensor.view());
  } catch (const openmsa::io::InputError&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const MemoryFile memory(data, size);
  try {
    const openmsa::io::SafetensorsFile file(memory.path());
    for (const auto& [name, tensor] : file.tensors()) read_all(tensor);
  } catch (const openmsa::io::InputError&) {
  }
  return 0;
}
