// model.safetensors.index.json: which file of a checkpoint holds which tensor. Untrusted.
#pragma once

#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace openmsa::io {

/// Tensor name -> name of a file beside the index. InputError: what is wrong, such as a file name that is a path.
std::map<std::string, std::string> parse_shard_index(const nlohmann::json& index);

}  // namespace openmsa::io
