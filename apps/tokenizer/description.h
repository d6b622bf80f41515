// The parts of tokenizer.json that are read once: what they ask for, or an InputError that names what is not supported.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace openmsa::tokenizer {

/// A token number; InputError names `where`.
std::int32_t token_number(const nlohmann::json& value, const std::string& where);

/// InputError: `feature` of `part` is not supported.
[[noreturn]] void unsupported(const std::string& part, const std::string& feature);

/// "type" of a part.
std::string type_of(const nlohmann::json& part);

/// The members of a Sequence, listed under `key`, or the one part itself; none for null. InputError: more than a text
/// should be walked through.
std::vector<nlohmann::json> members(const nlohmann::json& part, const char* key);

/// Refuses decoders other than ByteLevel, alone or in a Sequence.
void check_pipeline(const nlohmann::json& file);

/// Names of what the file has for batches of texts of one length, which change nothing here.
std::vector<std::string> ignored_parts(const nlohmann::json& file);

/// The regular expressions of pre_tokenizer, which must end in ByteLevel.
std::vector<std::string> word_patterns(const nlohmann::json& pre_tokenizer);

/// Tokens that post_processor puts around a text.
struct Surroundings {
  std::vector<std::int32_t> before;
  std::vector<std::int32_t> after;
};
Surroundings surroundings(const nlohmann::json& post_processor);

}  // namespace openmsa::tokenizer
