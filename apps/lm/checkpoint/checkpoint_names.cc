#include "lm/checkpoint/checkpoint_names.h"

#include <cstdint>
#include <utility>

namespace openmsa::lm {
namespace {

/// `name` with `from` replaced once by `to`; unchanged where it does not occur.
std::string replaced(std::string name, const std::string& from, const std::string& to) {
  const std::size_t at = name.find(from);
  if (at != std::string::npos) name.replace(at, from.size(), to);
  return name;
}

std::vector<std::string> with_prefixes(const std::string& name) {
  const std::string body = "model.";
  if (!name.starts_with(body)) return {name, "language_model." + name};
  const std::string rest = name.substr(body.size());
  return {name, "model.language_model." + rest, "language_model.model." + rest};
}

/// The published checkpoint's word for a part of the layer, in both folders of MLP names that occur.
std::vector<std::string> with_published_parts(std::string name) {
  for (const char* part : {"q_proj", "k_proj", "q_norm", "k_norm"}) {
    name = replaced(name, std::string(".indexer.") + part, std::string(".index_") + part);
  }
  const std::string moe = replaced(name, ".mlp.", ".block_sparse_moe.");
  return {name, moe, replaced(moe, ".gate.e_score_correction_bias", ".e_score_correction_bias")};
}

/// Fused matrices in the parts that they are published in.
StoredNames parts(const std::string& name, const Parameter& parameter) {
  const auto each_expert = [&](const std::string& fused, const std::vector<std::string>& matrices) {
    StoredNames result;
    const std::string prefix = name.substr(0, name.size() - fused.size());
    for (std::int64_t expert = 0; expert < parameter.shape.front(); ++expert) {
      for (const std::string& matrix : matrices) {
        result.push_back(prefix);
        result.back().append(std::to_string(expert)).append(".").append(matrix).append(".weight");
      }
    }
    return result;
  };
  if (name.ends_with("experts.gate_up_proj")) return each_expert("gate_up_proj", {"w1", "w3"});
  if (name.ends_with("experts.down_proj")) return each_expert("down_proj", {"w2"});
  if (!name.ends_with("gate_up_proj.weight")) return {name};
  return {replaced(name, "gate_up_proj", "gate_proj"), replaced(name, "gate_up_proj", "up_proj")};
}

}  // namespace

std::vector<StoredNames> stored_names(const Parameter& parameter) {
  std::vector<StoredNames> result;
  for (const std::string& name : with_prefixes(parameter.name)) {
    result.push_back({name});
    for (const std::string& published : with_published_parts(name)) {
      result.push_back({published});
      result.push_back(parts(published, parameter));
    }
  }
  return result;
}

}  // namespace openmsa::lm
