// The parts of a text that are UTF-8.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

namespace openmsa::tokenizer {

/// Bytes of the character at the beginning of `text`; 0 where no character begins or it is cut off.
std::size_t utf8_length(std::string_view text);

/// The longest beginning that is UTF-8.
std::string_view utf8_prefix(std::string_view text);

/// Walks through `text`: `valid` for each longest stretch that is UTF-8, `other` for the bytes between such stretches.
void for_each_stretch(std::string_view text, const std::function<void(std::string_view)>& valid,
                      const std::function<void(std::string_view)>& other);

/// Holds back the beginning of a character until the rest of it has come; bytes that are no UTF-8 pass as they are.
class Utf8Stream {
 public:
  /// The text that can be shown after `bytes` have come.
  std::string push(std::string_view bytes);
  /// The bytes that are left at the end.
  std::string finish();

 private:
  std::string held_;
};

}  // namespace openmsa::tokenizer
