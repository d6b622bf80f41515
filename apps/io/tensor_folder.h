// The tensors of a checkpoint folder, in one file or in shards.
#pragma once

#include <deque>
#include <filesystem>
#include <map>
#include <string>

#include "io/safetensors.h"

namespace openmsa::io {

/// Maps model.safetensors or, where there is none, the files that model.safetensors.index.json names. Tensors that the
/// index does not mention are not found.
class TensorFolder {
 public:
  explicit TensorFolder(const std::filesystem::path& folder);  // InputError: names the file and what is wrong
  TensorFolder(const TensorFolder&) = delete;
  TensorFolder& operator=(const TensorFolder&) = delete;

  /// nullptr where there is none; lives as long as the TensorFolder.
  const StoredTensor* find(const std::string& name) const;

 private:
  std::deque<SafetensorsFile> files_;  // which never moves what it holds
  std::map<std::string, const StoredTensor*> tensors_;
};

}  // namespace openmsa::io
