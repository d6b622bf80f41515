// The alphabet in which byte-level tokenizers write bytes as printable characters (GPT-2's).
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace openmsa::tokenizer {

/// The bytes that `token` stands for: printable Latin-1 characters for themselves, and U+0100 to U+0143 for the other
/// bytes in their order. Nothing when another character occurs.
std::optional<std::string> bytes_of_letters(std::string_view token);

}  // namespace openmsa::tokenizer
