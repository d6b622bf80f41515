// Files with results of an independent implementation: golden/data/README.md.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

namespace openmsa::test {

/// OPENMSA_GOLDEN_DIR names another folder, for a test program that has left the place where it was built.
inline std::filesystem::path golden_file(const std::string& name) {
  const char* folder = std::getenv("OPENMSA_GOLDEN_DIR");
  return std::filesystem::path(folder != nullptr ? folder : OPENMSA_GOLDEN_DIR) / name;
}

}  // namespace openmsa::test
