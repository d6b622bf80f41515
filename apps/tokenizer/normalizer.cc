#include "tokenizer/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>

#include "tokenizer/description.h"

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

struct Free {
  void operator()(utf8proc_uint8_t* memory) const { std::free(memory); }
};

std::string normalized(const std::string& text, int options) {
  utf8proc_uint8_t* result = nullptr;
  const utf8proc_ssize_t size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
                   &result, static_cast<utf8proc_option_t>(options));
  const std::unique_ptr<utf8proc_uint8_t, Free> memory(result);
  return size < 0 ? text : std::string(reinterpret_cast<const char*>(result), static_cast<std::size_t>(size));
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
  for (const int options : forms_) result = normalized(result, options);
  return result;
}

}  // namespace openmsa::tokenizer
