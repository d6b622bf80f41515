#include "lm/model/config_keys.h"

#include <string>
#include <utility>

#include "io/error.h"

namespace openmsa::lm {
namespace {

using nlohmann::json;

constexpr const char* kWholeModelType = "minimax_m3_vl";

/// Each flat key and its older name inside sparse_attention_config, which wins where both are given.
constexpr std::pair<const char*, const char*> kSparseKeys[] = {
    {"index_n_heads", "sparse_num_index_heads"},  {"index_head_dim", "sparse_index_dim"},
    {"index_block_size", "sparse_block_size"},    {"index_topk_blocks", "sparse_topk_blocks"},
    {"index_local_blocks", "sparse_local_block"}, {"index_init_blocks", "sparse_init_block"},
};

json take(json& object, const char* key) {
  json value = object.value(key, json());
  object.erase(key);
  return value;
}

void remove_nulls(json& object) {
  for (auto entry = object.begin(); entry != object.end();) {
    entry = entry->is_null() ? object.erase(entry) : std::next(entry);
  }
}

/// [0, 1, 1] -> [other, chosen, chosen]
json names_of_flags(const json& flags, const char* key, const char* chosen, const char* other) {
  json names = json::array();
  if (!flags.is_array()) refuse(key, "a list of 0 and 1", flags.dump());
  for (const json& flag : flags) {
    if (flag != 0 && flag != 1) refuse(key, "0 or 1", flag.dump());
    names.push_back(flag == 1 ? chosen : other);
  }
  return names;
}

/// The list under `key`, or what the older `flags` say, or `name` for every layer.
void complete_list(json& object, const char* key, const json& flags_as_names, const char* name) {
  if (object.contains(key)) return;
  if (!flags_as_names.is_null()) {
    object[key] = flags_as_names;
    return;
  }
  const json layers = object.value("num_hidden_layers", json());
  constexpr std::uint64_t kMaxLayers = 1 << 16;  // more are refused anyway
  if (layers.is_number_unsigned() && layers <= kMaxLayers) object[key] = json(layers.get<std::size_t>(), name);
}

void rename_older_keys(json& object) {
  json sparse = take(object, "sparse_attention_config");
  if (sparse.is_null()) sparse = json::object();
  if (!sparse.is_object()) refuse("sparse_attention_config", "an object", sparse.dump());
  for (const auto& [key, older] : kSparseKeys) {
    if (sparse.contains(older)) object[key] = sparse[older];
  }
  json attention, mlp;
  if (const json flags = take(sparse, "sparse_attention_freq"); !flags.is_null()) {
    attention = names_of_flags(flags, "sparse_attention_freq", kSparseAttention, kFullAttention);
  }
  if (const json flags = take(object, "moe_layer_freq"); !flags.is_null()) {
    mlp = names_of_flags(flags, "moe_layer_freq", "sparse", "dense");
  }
  complete_list(object, "layer_types", attention, kFullAttention);
  complete_list(object, "mlp_layer_types", mlp, "sparse");
  if (const json rope = take(object, "rope_scaling"); !rope.is_null()) object["rope_parameters"] = rope;
}

void refuse_quantised(const json& object) {
  if (object.contains("quantization_config") && !object["quantization_config"].is_null()) {
    refuse("quantization_config", "none, for weights are read as fp32, bf16 or fp16", "one");
  }
}

}  // namespace

void refuse(const std::string& key, const std::string& expected, const std::string& got) {
  throw io::InputError("config: " + key + ": expected " + expected + ", got " + got);
}

json text_part(const json& file) {
  if (!file.is_object()) refuse("config.json", "an object", file.type_name());
  const json type = file.value("model_type", json());
  if (type != kModelType && type != kWholeModelType) {
    refuse("model_type", json(kModelType).dump() + " or " + json(kWholeModelType).dump(), type.dump());
  }
  refuse_quantised(file);
  json object = type == kModelType ? file : file.value("text_config", json());
  if (!object.is_object()) refuse("text_config", "an object", object.dump());
  refuse_quantised(object);
  remove_nulls(object);
  rename_older_keys(object);
  return object;
}

}  // namespace openmsa::lm
