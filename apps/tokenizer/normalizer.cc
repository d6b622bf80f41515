#include "tokenizer/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>

#include "tokenizer/description.h"
#include "tokenizer/utf8.h"

namespace openmsa::tokenizer {
namespace {

struct Form {
  const char* name;
  int options;
};
constexpr Form kForms[] = {{"NFC", UTF8PROC_STABLE | UTF8PROC_COMPOSE},
                           {"NFD", UTF8PROC_STABLE | UTF8PROC_DECOMPOSE},
                           {"NFKC", UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT},
                           {"NFKD", UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT}};

/// The code points of UTF-8 text, decomposed as `options` say; empty where utf8proc refuses it.
std::vector<utf8proc_int32_t> decomposed(std::string_view text, utf8proc_option_t options) {
  constexpr std::size_t kLongest = 32;  // what one code point may become; Unicode's longest is 18
  std::vector<utf8proc_int32_t> result;
  for (std::size_t at = 0; at < text.size();) {
    utf8proc_int32_t code_point = 0;
    const utf8proc_ssize_t length = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + at,
                                                     static_cast<utf8proc_ssize_t>(text.size() - at), &code_point);
    if (length <= 0) return {};
    at += static_cast<std::size_t>(length);
    const std::size_t end = result.size();
    result.resize(end + kLongest);
    const utf8proc_ssize_t count = utf8proc_decompose_char(code_point, result.data() + end, kLongest, options, nullptr);
    if (count < 0 || static_cast<std::size_t>(count) > kLongest) return {};
    result.resize(end + static_cast<std::size_t>(count));
  }
  return result;
}

/// Runs of combining marks in canonical order. utf8proc's own function swaps neighbours, which takes the square of the
/// longest run.
void sort_marks(std::vector<utf8proc_int32_t>& code_points) {
  const auto combining_class = [](utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; };
  const auto is_mark = [&](utf8proc_int32_t c) { return combining_class(c) != 0; };
  for (auto begin = code_points.begin(); begin != code_points.end();) {
    begin = std::find_if(begin, code_points.end(), is_mark);
    const auto end = std::find_if_not(begin, code_points.end(), is_mark);
    std::ranges::stable_sort(begin, end, {}, combining_class);
    begin = end;
  }
}

std::string normalized(std::string_view text, int form) {
  const auto options = static_cast<utf8proc_option_t>(form);
  std::vector<utf8proc_int32_t> code_points = decomposed(text, options);
  sort_marks(code_points);
  const utf8proc_ssize_t count =
      utf8proc_normalize_utf32(code_points.data(), static_cast<utf8proc_ssize_t>(code_points.size()), options);
  if (count <= 0) return std::string(text);
  std::string result;
  for (utf8proc_ssize_t i = 0; i < count; ++i) {
    utf8proc_uint8_t bytes[4];
    const utf8proc_ssize_t length = utf8proc_encode_char(code_points[static_cast<std::size_t>(i)], bytes);
    result.append(reinterpret_cast<const char*>(bytes), static_cast<std::size_t>(length));
  }
  return result;
}

}  // namespace

Normalizer::Normalizer(const nlohmann::json& description) {
  for (const nlohmann::json& part : members(description, "normalizers")) {
    const std::string type = type_of(part);
    const auto* const form = std::ranges::find(kForms, type, &Form::name);
    if (form == std::end(kForms)) unsupported("normalizer", type);
    forms_.push_back(form->options);
  }
}

std::string Normalizer::apply(std::string_view text) const {
  std::string result(text);
  for (const int form : forms_) {
    std::string next;
    for_each_stretch(
        result, [&](std::string_view stretch) { next += normalized(stretch, form); },
        [&](std::string_view bytes) { next += bytes; });
    result = std::move(next);
  }
  return result;
}

}  // namespace openmsa::tokenizer
