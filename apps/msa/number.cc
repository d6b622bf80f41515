#include "msa/number.h"

#include <cctype>
#include <cmath>
#include <cstdlib>

namespace openmsa::cli {
namespace {

/// Removes leading zeros; returns what is wrong with the number, or "".
std::string make_plain(std::string& number, bool is_unsigned) {
  const std::size_t first = number.starts_with('-') || number.starts_with('+') ? 1 : 0;
  if (is_unsigned && number.starts_with('-')) return "expected a number from 0 on, got " + number;
  if (std::isnan(std::strtod(number.c_str(), nullptr))) return "expected a number, got " + number;
  const auto is_digit = [&](std::size_t i) { return i < number.size() && std::isdigit(number[i]) != 0; };
  while (is_digit(first) && number[first] == '0' && is_digit(first + 1)) number.erase(first, 1);
  return "";
}

}  // namespace

void read_plain_numbers(CLI::App& app) {
  for (CLI::Option* option : app.get_options()) {
    const std::string type = option->get_type_name();
    const bool is_unsigned = type.starts_with("UINT");
    if (!is_unsigned && !type.starts_with("INT") && !type.starts_with("FLOAT")) continue;
    option->transform(CLI::Validator([=](std::string& number) { return make_plain(number, is_unsigned); }, ""));
  }
  for (CLI::App* command : app.get_subcommands({})) read_plain_numbers(*command);
}

}  // namespace openmsa::cli
