// Words of config.json, and the forms that the file may have.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace openmsa::lm {

inline constexpr const char* kModelType = "minimax_m3_vl_text";
inline constexpr const char* kSparseAttention = "minimax_m3_sparse";
inline constexpr const char* kFullAttention = "full_attention";

/// InputError: "config: KEY: expected EXPECTED, got GOT".
[[noreturn]] void refuse(const std::string& key, const std::string& expected, const std::string& got);

/// What config.json says about the text model, under the keys of type minimax_m3_vl_text: the part text_config of a
/// file of type minimax_m3_vl, older keys renamed, keys that are null removed, and the layer lists that may be left out
/// filled in as transformers does. InputError: another type, a quantised model, or older keys of the wrong type.
nlohmann::json text_part(const nlohmann::json& file);

}  // namespace openmsa::lm
