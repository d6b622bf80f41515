// tokenizer.json of any content: a tokenizer that gives back what it encodes, normal forms aside, or an InputError.
#include <stdexcept>
#include <string>
#include <string_view>

#include "io/error.h"
#include "io/json_file.h"
#include "tokenizer/byte_level.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace openmsa;
  const std::string text = "It's 12345 w\xc3\xb6rds,  \r\n<s>\xff\xe2\x82 and\tmore\n\n";
  try {
    const nlohmann::json file = io::parse_json({reinterpret_cast<const char*>(data), size});
    const tokenizer::ByteLevelTokenizer tokenizer(file);
    const auto tokens = tokenizer.encode(text);
    tokenizer.decode(tokenizer.encode_prompt(text));
    const bool is_normalized = !file.value("normalizer", nlohmann::json()).is_null();
    if (!is_normalized && tokenizer.decode(tokens) != text) throw std::logic_error("not the same text");
  } catch (const io::InputError&) {
  }
  return 0;
}
