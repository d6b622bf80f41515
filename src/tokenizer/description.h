// The parts of tokenizer.json that are read once: what they ask for, or an InputError that names what is not supported.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace openmsa::tokenizer {

/// A token number; InputError names `where`.
std::int32_t token_number(const nlohmann::json& value, const std::string& where);

/// Refuses normalizers, decoders other than ByteLevel, truncation and padding.
void check_pipeline(const nlohmann::json& file);

/// The regular expressions of pre_tokenizer, which must end in ByteLevel.
std::vector<std::string> word_patterns(const nlohmann::json& pre_tokenizer);

/// Tokens that post_processor puts around a text.
struct Surroundings {
  std::vector<std::int32_t> before;
  std::vector<std::int32_t> after;
};
Surroundings surroundings(const nlohmann::json& post_processor);

}  // namespace openmsa::tokenizer
