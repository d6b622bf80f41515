// Text to token numbers and back.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace openmsa::tokenizer {

/// Any bytes can be encoded, UTF-8 or not, and decoding gives them back.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  virtual std::vector<std::int32_t> encode(std::string_view text) const = 0;
  /// With the tokens that the model expects around a text, such as one for its beginning.
  virtual std::vector<std::int32_t> encode_prompt(std::string_view text) const { return encode(text); }
  /// Bytes of one token; none for a number that stands for nothing.
  virtual std::string decode(std::int32_t token) const = 0;

  std::string decode(std::span<const std::int32_t> tokens) const {
    std::string bytes;
    for (const std::int32_t token : tokens) bytes += decode(token);
    return bytes;
  }
};

/// One token per byte. Decoding any other token is an InputError: its model needs a tokenizer.json.
class ByteTokenizer : public Tokenizer {
 public:
  using Tokenizer::decode;
  std::vector<std::int32_t> encode(std::string_view text) const override;
  std::string decode(std::int32_t token) const override;
};

/// tokenizer.json of a model's folder, or bytes where there is none. InputError: what the file asks for and this
/// program does not have, or what is wrong with it. `note` hears, in a line each, what in the file is ignored.
std::unique_ptr<Tokenizer> load_tokenizer(
    const std::filesystem::path& folder, const std::function<void(const std::string&)>& note = [](const auto&) {});

}  // namespace openmsa::tokenizer
