#include "io/shard_index.h"

#include <nlohmann/json.hpp>

#include "io/error.h"

namespace openmsa::io {
namespace {

/// Files are opened by these names, so that none may lead out of the checkpoint's folder.
void check_file_name(const std::string& tensor, const std::string& name) {
  const bool plain = !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
                     name.find('\0') == std::string::npos;
  if (!plain) throw InputError("weight_map: '" + tensor + "': expected the name of a file, got '" + name + "'");
}

}  // namespace

std::map<std::string, std::string> parse_shard_index(const nlohmann::json& index) {
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    throw InputError("weight_map: expected an object from tensor names to file names");
  }
  std::map<std::string, std::string> files;
  for (const auto& [tensor, file] : index["weight_map"].items()) {
    if (!file.is_string()) throw InputError("weight_map: '" + tensor + "': expected a string, got " + file.type_name());
    check_file_name(tensor, files[tensor] = file.get<std::string>());
  }
  if (files.empty()) throw InputError("weight_map: no tensors");
  return files;
}

}  // namespace openmsa::io
