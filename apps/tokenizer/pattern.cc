#define PCRE2_CODE_UNIT_WIDTH 8
#include "tokenizer/pattern.h"

#include <pcre2.h>

#include <algorithm>
#include <limits>
#include <new>
#include <optional>

#include "io/error.h"
#include "tokenizer/utf8.h"

namespace openmsa::tokenizer {
namespace {

using io::InputError;

constexpr std::size_t kMaxPattern = 1 << 16;
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

/// Matches of a pattern in one text, each at a given place. How much an attempt costs is known by what it was allowed:
/// it sees as many bytes, and may take as many steps, as its effort says, and is repeated with more where it would.
class Matcher {
 public:
  Matcher(const pcre2_code* code, std::string_view text, MatchBudget& budget)
      : code_(code),
        text_(text),
        budget_(budget),
        limits_(pcre2_match_context_create(nullptr), pcre2_match_context_free),
        data_(pcre2_match_data_create_from_pattern(code, nullptr), pcre2_match_data_free) {
    if (!limits_ || !data_) throw std::bad_alloc();
    pcre2_set_heap_limit(limits_.get(), kMaxHeapKib);
  }

  /// Where the match that begins at `start` ends.
  std::optional<std::size_t> match(std::size_t start) {
    constexpr std::uint64_t kFirstEffort = 64, kFactor = 4;
    for (std::uint64_t effort = kFirstEffort;; effort *= kFactor) {
      budget_.spend(effort);
      const int count = attempt(start, effort);
      if (count == PCRE2_ERROR_PARTIAL || count == PCRE2_ERROR_MATCHLIMIT) continue;
      if (count == PCRE2_ERROR_NOMATCH) return std::nullopt;
      if (count < 0) throw InputError("pattern: " + message_of(count));
      return std::max(pcre2_get_ovector_pointer(data_.get())[1], start);
    }
  }

 private:
  /// With a part of the text, PCRE2 says where more of it could change the result.
  int attempt(std::size_t start, std::uint64_t effort) {
    constexpr std::uint64_t kMostSteps = std::numeric_limits<std::uint32_t>::max();
    std::size_t end = text_.size() - start > effort ? start + effort : text_.size();
    while (end < text_.size() && (static_cast<unsigned char>(text_[end]) & 0xc0) == 0x80) ++end;
    const std::uint32_t partial = end < text_.size() ? PCRE2_PARTIAL_HARD : 0;
    pcre2_set_match_limit(limits_.get(), static_cast<std::uint32_t>(std::min(effort, kMostSteps)));
    return pcre2_match(code_, reinterpret_cast<PCRE2_SPTR>(text_.data()), end, start,
                       PCRE2_NO_UTF_CHECK | PCRE2_ANCHORED | partial, data_.get(), limits_.get());
  }

  const pcre2_code* code_;
  std::string_view text_;
  MatchBudget& budget_;
  std::unique_ptr<pcre2_match_context, void (*)(pcre2_match_context*)> limits_;
  std::unique_ptr<pcre2_match_data, void (*)(pcre2_match_data*)> data_;
};

}  // namespace

void MatchBudget::spend(std::uint64_t effort) {
  if (effort > left_) throw InputError("pattern: takes too many steps for the length of the text");
  left_ -= effort;
}

Pattern::Pattern(const std::string& regex) {
  if (regex.size() > kMaxPattern) throw InputError("pattern: longer than 64 KiB");
  refuse_other_meanings(regex);
  int error = 0;
  std::size_t offset = 0;
  // Without its own search for the place where a match could begin, whose cost has no limit.
  constexpr std::uint32_t kOptions =
      PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C | PCRE2_NO_START_OPTIMIZE;
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(regex.data()), regex.size(), kOptions, &error, &offset, nullptr);
  if (!code) throw InputError("pattern: " + message_of(error) + " at offset " + std::to_string(offset));
  code_.reset(code, pcre2_code_free);
}

void Pattern::split(std::string_view text, MatchBudget& budget,
                    const std::function<void(std::string_view)>& piece) const {
  for_each_stretch(
      text, [&](std::string_view stretch) { split_utf8(stretch, budget, piece); }, piece);
}

void Pattern::split_utf8(std::string_view text, MatchBudget& budget,
                         const std::function<void(std::string_view)>& piece) const {
  Matcher matcher(static_cast<const pcre2_code*>(code_.get()), text, budget);
  std::size_t done = 0;   // pieces end here
  std::size_t start = 0;  // the next match is looked for here
  while (start < text.size()) {
    const std::optional<std::size_t> end = matcher.match(start);
    if (end) {  // an empty match cuts the text too
      if (start > done) piece(text.substr(done, start - done));
      if (*end > start) piece(text.substr(start, *end - start));
      done = *end;
    }
    start = end && *end > start ? *end : start + utf8_length(text.substr(start));
  }
  if (done < text.size()) piece(text.substr(done));
}

}  // namespace openmsa::tokenizer
