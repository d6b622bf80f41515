#include "tokenizer/description.h"

#include <nlohmann/json.hpp>

#include "io/error.h"

namespace openmsa::tokenizer {
namespace {

using io::InputError;
using nlohmann::json;

constexpr const char* kByteLevelPattern =  // GPT-2's, which ByteLevel uses where no other is given
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

json value_or_null(const json& object, const char* key) {
  return object.is_object() ? object.value(key, json()) : json();
}

std::string split_pattern(const json& split) {
  const json pattern = value_or_null(split, "pattern");
  const json regex = value_or_null(pattern, "Regex");
  if (!regex.is_string()) unsupported("pre_tokenizer", "a Split with the pattern " + pattern.dump());
  const json behavior = value_or_null(split, "behavior");
  if (behavior != "Isolated") unsupported("pre_tokenizer", "a Split with the behavior " + behavior.dump());
  return regex.get<std::string>();
}

std::vector<std::int32_t> template_tokens(const json& piece, const json& special_tokens) {
  const json name = value_or_null(value_or_null(piece, "SpecialToken"), "id");
  if (!name.is_string()) throw InputError("post_processor: expected SpecialToken or Sequence, got " + piece.dump());
  const json ids = value_or_null(value_or_null(special_tokens, name.get<std::string>().c_str()), "ids");
  if (!ids.is_array()) throw InputError("post_processor: no ids of " + name.dump());
  std::vector<std::int32_t> tokens;
  for (const json& id : ids) tokens.push_back(token_number(id, "post_processor"));
  return tokens;
}

void read_template(const json& processor, Surroundings& result) {
  const json pieces = value_or_null(processor, "single");
  if (!pieces.is_array()) throw InputError("post_processor: single: expected a list");
  const json special_tokens = value_or_null(processor, "special_tokens");
  bool after_text = false;
  for (const json& piece : pieces) {
    if (piece.is_object() && piece.contains("Sequence")) {
      if (after_text) unsupported("post_processor", "a text that is repeated");
      after_text = true;
      continue;
    }
    std::vector<std::int32_t>& target = after_text ? result.after : result.before;
    for (const std::int32_t token : template_tokens(piece, special_tokens)) {
      target.push_back(token);
    }
  }
}

}  // namespace

std::string type_of(const json& part) {
  const json type = value_or_null(part, "type");
  return type.is_string() ? type.get<std::string>() : type.dump();
}

void unsupported(const std::string& part, const std::string& feature) {
  throw InputError(part + ": " + feature + " is not supported");
}

std::vector<json> members(const json& part, const char* key) {
  if (part.is_null()) return {};
  if (type_of(part) != "Sequence") return {part};
  const json list = value_or_null(part, key);
  constexpr std::size_t kMost = 32;  // each walks through every text; published models have up to five
  if (!list.is_array()) throw InputError(std::string(key) + ": expected a list");
  if (list.size() > kMost) throw InputError(std::string(key) + ": more than " + std::to_string(kMost) + " parts");
  return {list.begin(), list.end()};
}

std::int32_t token_number(const json& value, const std::string& where) {
  constexpr std::int32_t kMost = 1 << 24;  // as many as a model's vocabulary may have
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() >= kMost) {
    throw InputError(where + ": expected a token number below " + std::to_string(kMost) + ", got " + value.dump());
  }
  return value.get<std::int32_t>();
}

void check_pipeline(const json& file) {
  if (!file.is_object()) throw InputError(std::string("expected an object, got ") + file.type_name());
  const std::vector<json> decoders = members(value_or_null(file, "decoder"), "decoders");
  if (decoders.empty()) unsupported("decoder", "none");
  for (const json& decoder : decoders) {
    if (type_of(decoder) != "ByteLevel") unsupported("decoder", type_of(decoder));
  }
  if (decoders.size() > 1) unsupported("decoder", "ByteLevel after ByteLevel");
}

std::vector<std::string> ignored_parts(const json& file) {
  std::vector<std::string> parts;
  for (const char* key : {"truncation", "padding"}) {
    if (!value_or_null(file, key).is_null()) parts.emplace_back(key);
  }
  return parts;
}

std::vector<std::string> word_patterns(const json& pre_tokenizer) {
  std::vector<std::string> patterns;
  bool is_byte_level = false;
  for (const json& part : members(pre_tokenizer, "pretokenizers")) {
    const std::string type = type_of(part);
    if (is_byte_level) unsupported("pre_tokenizer", type + " after ByteLevel");
    if (type == "Split") {
      patterns.push_back(split_pattern(part));
    } else if (type == "ByteLevel") {
      is_byte_level = true;
      if (part.value("add_prefix_space", json(true)) != false) unsupported("pre_tokenizer", "add_prefix_space");
      if (part.value("use_regex", json(true)) != false) patterns.emplace_back(kByteLevelPattern);
    } else {
      unsupported("pre_tokenizer", type);
    }
  }
  if (!is_byte_level) unsupported("pre_tokenizer", "a text that is not turned into bytes (ByteLevel)");
  return patterns;
}

Surroundings surroundings(const json& post_processor) {
  Surroundings result;
  for (const json& processor : members(post_processor, "processors")) {
    const std::string type = type_of(processor);
    if (type == "TemplateProcessing") {
      read_template(processor, result);
    } else if (type != "ByteLevel") {  // which changes offsets alone
      unsupported("post_processor", type);
    }
  }
  return result;
}

}  // namespace openmsa::tokenizer
