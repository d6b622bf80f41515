// model.safetensors.index.json of any content: plain file names, or an InputError.
#include <filesystem>
#include <stdexcept>
#include <string_view>

#include "io/error.h"
#include "io/json_file.h"
#include "io/shard_index.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace openmsa;
  try {
    const auto json = io::parse_json({reinterpret_cast<const char*>(data), size});
    for (const auto& [tensor, file] : io::parse_shard_index(json)) {
      const std::filesystem::path path = std::filesystem::path("/folder") / file;
      if (path.lexically_normal().parent_path() != "/folder") throw std::logic_error("outside: " + file);
    }
  } catch (const io::InputError&) {
  }
  return 0;
}
