#include "tokenizer/byte_level.h"

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "io/error.h"
#include "tokenizer/byte_alphabet.h"
#include "tokenizer/description.h"

namespace openmsa::tokenizer {
namespace {

using io::InputError;
using nlohmann::json;

/// "model" must be byte-level BPE as it is: none of the variants that BPE has for other alphabets.
void check_model(const json& model) {
  if (!model.is_object()) throw InputError("model: expected an object");
  if (const json type = model.value("type", json("BPE")); type != "BPE") {
    throw InputError("model: " + type.dump() + " is not supported");
  }
  if (!model.value("vocab", json()).is_object()) throw InputError("model.vocab: expected an object");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix", "dropout"}) {
    const json value = model.value(key, json());
    const bool is_off = value.is_null() || value == 0.0 || value == json(std::string());
    if (!is_off) {
      throw InputError(std::string("model: ") + key + " is not supported");
    }
  }
}

json normalizer_of(const json& file) { return file.is_object() ? file.value("normalizer", json()) : json(); }

/// "left right", or ["left", "right"].
std::pair<std::string, std::string> pair_of(const json& merge) {
  if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
    return {merge[0].get<std::string>(), merge[1].get<std::string>()};
  }
  const std::string text = merge.is_string() ? merge.get<std::string>() : "";
  const std::size_t space = text.find(' ');
  if (space == std::string::npos) throw InputError("model.merges: expected a pair of tokens, got " + merge.dump());
  return {text.substr(0, space), text.substr(space + 1)};
}

std::int32_t token_of(const std::string& letters, const json& vocab) {
  const auto found = vocab.find(letters);
  if (found == vocab.end()) throw InputError("model.merges: no token '" + letters + "' in the vocabulary");
  return token_number(*found, "model.vocab");
}

}  // namespace

ByteLevelTokenizer::ByteLevelTokenizer(const json& file) : normalizer_(normalizer_of(file)) {
  check_pipeline(file);
  for (const std::string& regex : word_patterns(file.value("pre_tokenizer", json()))) patterns_.emplace_back(regex);
  Surroundings around = surroundings(file.value("post_processor", json()));
  before_prompt_ = std::move(around.before);
  after_prompt_ = std::move(around.after);
  const auto model = file.find("model");
  if (model == file.end()) throw InputError("model: expected an object");
  read_model(*model);
  read_added_tokens(file.value("added_tokens", json::array()), model->at("vocab"));
}

void ByteLevelTokenizer::read_model(const json& model) {
  check_model(model);
  const json& vocab = model.at("vocab");
  ignore_merges_ = model.value("ignore_merges", json(false)) == true;
  Bpe::ByteTokens byte_tokens;
  byte_tokens.fill(-1);
  for (const auto& [letters, number] : vocab.items()) {
    const std::int32_t token = token_number(number, "model.vocab");
    const auto bytes = bytes_of_letters(letters);
    if (!bytes_.try_emplace(token, bytes.value_or(letters)).second) {
      throw InputError("model.vocab: the token " + std::to_string(token) + " occurs twice");
    }
    if (!bytes) continue;
    if (bytes->size() == 1) byte_tokens[static_cast<unsigned char>(bytes->front())] = token;
    if (ignore_merges_) whole_words_[*bytes] = token;
  }
  for (std::size_t byte = 0; byte < byte_tokens.size(); ++byte) {
    if (byte_tokens[byte] < 0) throw InputError("model.vocab: no token for the byte " + std::to_string(byte));
  }
  bpe_.emplace(byte_tokens);
  read_merges(model.value("merges", json::array()), vocab);
}

void ByteLevelTokenizer::read_merges(const json& merges, const json& vocab) {
  if (!merges.is_array()) throw InputError("model.merges: expected a list");
  std::uint32_t rank = 0;
  for (const json& merge : merges) {
    const auto [left, right] = pair_of(merge);
    bpe_->add_merge(token_of(left, vocab), token_of(right, vocab), rank++, token_of(left + right, vocab));
  }
}

void ByteLevelTokenizer::read_added_tokens(const json& added_tokens, const json& vocab) {
  if (!added_tokens.is_array()) throw InputError("added_tokens: expected a list");
  std::map<std::string, std::int32_t> raw, normalized;
  for (const json& added : added_tokens) {
    const json content = added.is_object() ? added.value("content", json()) : json();
    if (!content.is_string() || content == json(std::string()))
      throw InputError("added_tokens: expected content in " + added.dump());
    for (const char* key : {"single_word", "lstrip", "rstrip"}) {
      if (added.value(key, json(false)) != false) {
        throw InputError("added_tokens: " + content.dump() + ": " + key + " is not supported");
      }
    }
    const std::int32_t token = token_number(added.value("id", json()), "added_tokens");
    const bool is_in_vocabulary = vocab.value(content.get<std::string>(), json()) == token;
    if (!is_in_vocabulary && bytes_.contains(token)) {
      throw InputError("added_tokens: " + content.dump() + " has the number of another token");
    }
    const auto letters = content.get<std::string>();
    if (added.value("normalized", json(false)) == true) {
      normalized[normalizer_.apply(letters)] = token;
    } else {
      raw[letters] = token;
    }
    bytes_[token] = letters;
  }
  raw_tokens_ = AddedTokens(raw);
  normalized_tokens_ = AddedTokens(normalized);
}

std::vector<std::int32_t> ByteLevelTokenizer::encode(std::string_view text) const {
  std::vector<std::int32_t> tokens;
  MatchBudget budget;
  const auto keep = [&](std::int32_t token) { tokens.push_back(token); };
  const auto encode_rest = [&](std::string_view part) {
    normalized_tokens_.split(
        normalizer_.apply(part), [&](std::string_view between) { encode_part(between, budget, tokens); }, keep);
  };
  raw_tokens_.split(text, encode_rest, keep);
  return tokens;
}

std::vector<std::int32_t> ByteLevelTokenizer::encode_prompt(std::string_view text) const {
  std::vector<std::int32_t> tokens = before_prompt_;
  const std::vector<std::int32_t> inner = encode(text);
  tokens.insert(tokens.end(), inner.begin(), inner.end());
  tokens.insert(tokens.end(), after_prompt_.begin(), after_prompt_.end());
  return tokens;
}

void ByteLevelTokenizer::encode_part(std::string_view text, MatchBudget& budget,
                                     std::vector<std::int32_t>& tokens) const {
  std::vector<std::string_view> words = {text}, pieces;
  for (const Pattern& pattern : patterns_) {
    budget.add_text(text.size());
    pieces.clear();
    for (const std::string_view word : words) {
      pattern.split(word, budget, [&](std::string_view piece) { pieces.push_back(piece); });
    }
    words.swap(pieces);
  }
  for (const std::string_view word : words) encode_word(word, tokens);
}

void ByteLevelTokenizer::encode_word(std::string_view word, std::vector<std::int32_t>& tokens) const {
  if (ignore_merges_) {
    const auto whole = whole_words_.find(std::string(word));
    if (whole != whole_words_.end()) return tokens.push_back(whole->second);
  }
  bpe_->encode(word, tokens);
}

std::string ByteLevelTokenizer::decode(std::int32_t token) const {
  const auto found = bytes_.find(token);
  return found == bytes_.end() ? std::string() : found->second;
}

}  // namespace openmsa::tokenizer
