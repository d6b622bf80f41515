#include "io/tensor_folder.h"

#include "io/error.h"
#include "io/json_file.h"
#include "io/shard_index.h"

namespace openmsa::io {
namespace {

std::map<std::string, std::string> read_index(const std::filesystem::path& path) {
  const nlohmann::json index = read_json(path);
  try {
    return parse_shard_index(index);
  } catch (const InputError& error) {
    throw InputError(path.string() + ": " + error.what());
  }
}

}  // namespace

TensorFolder::TensorFolder(const std::filesystem::path& folder) {
  const std::filesystem::path whole = folder / "model.safetensors";
  const std::filesystem::path index = folder / "model.safetensors.index.json";
  if (std::filesystem::exists(whole) || !std::filesystem::exists(index)) {
    files_.emplace_back(whole);
    for (const auto& [name, tensor] : files_.front().tensors()) tensors_.emplace(name, &tensor);
    return;
  }

  const std::map<std::string, std::string> names = read_index(index);
  std::map<std::string, std::size_t> opened;
  for (const auto& [tensor, file] : names) {
    const auto [position, is_new] = opened.try_emplace(file, files_.size());
    if (is_new) files_.emplace_back(folder / file);
    tensors_.emplace(tensor, &files_[position->second].at(tensor));
  }
}

const StoredTensor* TensorFolder::find(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : found->second;
}

}  // namespace openmsa::io
