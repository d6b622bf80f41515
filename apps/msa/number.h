// Numbers on the command line.
#pragma once

#include <CLI/CLI.hpp>
#include <sstream>
#include <string>

namespace openmsa::cli {

/// least <= number <= most, which NaN is not.
template <class T>
CLI::Validator between(T least, T most) {
  std::ostringstream range;
  range << "from " << least << " to " << most;
  const auto check = [least, most, text = range.str()](const std::string& input) -> std::string {
    T value{};
    if (CLI::detail::lexical_cast(input, value) && value >= least && value <= most) return "";
    return "expected a number " + text + ", got " + input;
  };
  return {check, CLI::detail::type_name<T>() + (" " + range.str())};
}

/// Makes every numeric option of the commands below `app` read decimal numbers: CLI11 takes 010 for eight, -1 for the
/// largest unsigned number and "nan" for a number.
void read_plain_numbers(CLI::App& app);

}  // namespace openmsa::cli
