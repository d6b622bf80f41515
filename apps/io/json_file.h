// JSON files: figures of a run, model configurations, tokenizers.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace openmsa::io {

/// A whole file; InputError: names the path and the system's reason.
std::string read_text(const std::filesystem::path& path);

/// One JSON value, in time linear in its text; InputError when it is none, nested so deeply that copying it could exhaust
/// the stack, or made of so many values that they could exhaust memory.
nlohmann::json parse_json(std::string_view text);

/// A regular file with one JSON value, of at most 256 MiB; InputError: names the path and what is wrong.
nlohmann::json read_json(const std::filesystem::path& path);

/// Whole or not at all; std::runtime_error. Bytes that are no UTF-8 are replaced by U+FFFD.
void write_json(const std::filesystem::path& path, const nlohmann::ordered_json& value);

}  // namespace openmsa::io
