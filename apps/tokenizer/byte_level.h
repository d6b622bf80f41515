// The tokenizer of tokenizer.json files with byte-level BPE: added tokens, words by regular expression, merges.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <unordered_map>

#include "tokenizer/added_tokens.h"
#include "tokenizer/bpe.h"
#include "tokenizer/normalizer.h"
#include "tokenizer/pattern.h"
#include "tokenizer/tokenizer.h"

namespace openmsa::tokenizer {

class ByteLevelTokenizer : public Tokenizer {
 public:
  using Tokenizer::decode;

  /// InputError: names the key, and the feature where this program lacks it.
  explicit ByteLevelTokenizer(const nlohmann::json& file);

  std::vector<std::int32_t> encode(std::string_view text) const override;
  std::vector<std::int32_t> encode_prompt(std::string_view text) const override;
  std::string decode(std::int32_t token) const override;

 private:
  void read_model(const nlohmann::json& model);
  void read_merges(const nlohmann::json& merges, const nlohmann::json& vocab);
  void read_added_tokens(const nlohmann::json& added_tokens, const nlohmann::json& vocab);
  void encode_part(std::string_view text, MatchBudget& budget, std::vector<std::int32_t>& tokens) const;
  void encode_word(std::string_view word, std::vector<std::int32_t>& tokens) const;

  AddedTokens raw_tokens_;  // found in the text as it comes ...
  Normalizer normalizer_;
  AddedTokens normalized_tokens_;  // ... and in what the normalizer makes of the rest
  std::vector<Pattern> patterns_;  // each cuts what the one before left
  std::optional<Bpe> bpe_;
  bool ignore_merges_ = false;                                 // a word that is a token is not merged from its bytes
  std::unordered_map<std::string, std::int32_t> whole_words_;  // bytes -> token, when merges are ignored
  std::unordered_map<std::int32_t, std::string> bytes_;        // token -> bytes
  std::vector<std::int32_t> before_prompt_;
  std::vector<std::int32_t> after_prompt_;
};

}  // namespace openmsa::tokenizer
