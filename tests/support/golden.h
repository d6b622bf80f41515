// Files with results of an independent implementation. They lie beside the repository; without them tests skip.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

namespace openmsa::test {

inline std::filesystem::path golden_file(const std::string& name) {
  const char* folder = std::getenv("OPENMSA_GOLDEN_DIR");
  return std::filesystem::path(folder != nullptr ? folder : OPENMSA_GOLDEN_DIR) / (name + ".safetensors");
}

}  // namespace openmsa::test
