#include "tokenizer/tokenizer.h"

#include "io/error.h"
#include "io/json_file.h"
#include "tokenizer/byte_level.h"
#include "tokenizer/description.h"

namespace openmsa::tokenizer {

std::vector<std::int32_t> ByteTokenizer::encode(std::string_view text) const {
  std::vector<std::int32_t> tokens;
  tokens.reserve(text.size());
  for (const char byte : text) tokens.push_back(static_cast<unsigned char>(byte));
  return tokens;
}

std::string ByteTokenizer::decode(std::int32_t token) const {
  if (token < 0 || token > 255) {
    throw io::InputError("token " + std::to_string(token) + " is no byte, and the model has no tokenizer.json");
  }
  return {static_cast<char>(token)};
}

std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& folder,
                                          const std::function<void(const std::string&)>& note) {
  const std::filesystem::path path = folder / "tokenizer.json";
  if (!std::filesystem::exists(path)) return std::make_unique<ByteTokenizer>();
  const nlohmann::json json = io::read_json(path);
  try {
    auto tokenizer = std::make_unique<ByteLevelTokenizer>(json);
    for (const std::string& part : ignored_parts(json)) note(path.string() + ": " + part + " is ignored");
    return tokenizer;
  } catch (const io::InputError& error) {
    throw io::InputError(path.string() + ": " + error.what());
  }
}

}  // namespace openmsa::tokenizer
