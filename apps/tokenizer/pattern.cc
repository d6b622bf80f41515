#define PCRE2_CODE_UNIT_WIDTH 8
#include "tokenizer/pattern.h"

#include <pcre2.h>

#include <new>

#include "io/error.h"
#include "tokenizer/utf8.h"

namespace openmsa::tokenizer {
namespace {

using io::InputError;

constexpr std::size_t kMaxPattern = 1 << 16;
constexpr std::uint32_t kMaxSteps = 10'000'000;    // of one match
constexpr std::uint32_t kMaxHeapKib = 256 * 1024;  // of one match

std::string message_of(int error) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(error, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

/// Hugging Face's tokenizers read patterns with Oniguruma; PCRE2 agrees with it on all but these.
void refuse_other_meanings(const std::string& regex) {
  for (const char* construct : {"&&", "\\h", "\\H", "\\K", "\\R", "\\X", "(?m", "(?-m", "(?x"}) {
    if (regex.find(construct) != std::string::npos) {
      throw InputError(std::string("pattern: '") + construct + "' is not supported");
    }
  }
}

}  // namespace

Pattern::Pattern(const std::string& regex) {
  if (regex.size() > kMaxPattern) throw InputError("pattern: longer than 64 KiB");
  refuse_other_meanings(regex);
  int error = 0;
  std::size_t offset = 0;
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(regex.data()), regex.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr);
  if (!code) throw InputError("pattern: " + message_of(error) + " at offset " + std::to_string(offset));
  code_.reset(code, pcre2_code_free);
  pcre2_match_context* limits = pcre2_match_context_create(nullptr);
  if (!limits) throw std::bad_alloc();
  limits_.reset(limits, pcre2_match_context_free);
  pcre2_set_match_limit(limits, kMaxSteps);
  pcre2_set_heap_limit(limits, kMaxHeapKib);
}

void Pattern::split(std::string_view text, const std::function<void(std::string_view)>& piece) const {
  while (!text.empty()) {
    const std::string_view valid = utf8_prefix(text);
    if (!valid.empty()) split_utf8(valid, piece);
    text.remove_prefix(valid.size());
    std::size_t invalid = 0;
    while (invalid < text.size() && utf8_length(text.substr(invalid)) == 0) ++invalid;
    if (invalid > 0) piece(text.substr(0, invalid));
    text.remove_prefix(invalid);
  }
}

void Pattern::split_utf8(std::string_view text, const std::function<void(std::string_view)>& piece) const {
  const auto* code = static_cast<const pcre2_code*>(code_.get());
  const std::unique_ptr<pcre2_match_data, void (*)(pcre2_match_data*)> data(
      pcre2_match_data_create_from_pattern(code, nullptr), pcre2_match_data_free);
  if (!data) throw std::bad_alloc();

  std::size_t done = 0;   // pieces end here
  std::size_t start = 0;  // the next match is looked for from here
  while (start <= text.size()) {
    const int count = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), start,
                                  PCRE2_NO_UTF_CHECK, data.get(), static_cast<pcre2_match_context*>(limits_.get()));
    if (count == PCRE2_ERROR_NOMATCH) break;
    if (count < 0) throw InputError("pattern: " + message_of(count));
    const std::size_t* bounds = pcre2_get_ovector_pointer(data.get());
    const std::size_t begin = bounds[0];
    const std::size_t end = bounds[1];
    if (end <= start && begin == end) {  // an empty match: go on at the next character
      if (start == text.size()) break;
      start = begin + std::max<std::size_t>(utf8_length(text.substr(begin)), 1);
      continue;
    }
    if (begin > done) piece(text.substr(done, begin - done));
    if (end > begin) piece(text.substr(begin, end - begin));
    done = end;
    start = end;
  }
  if (done < text.size()) piece(text.substr(done));
}

}  // namespace openmsa::tokenizer
