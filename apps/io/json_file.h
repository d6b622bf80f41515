// JSON files: figures of a run, model configurations, tokenizers.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace openmsa::io {

/// A whole file; InputError: names the path and the system's reason.
std::string read_text(const std::filesystem::path& path);

/// One JSON value; InputError when it is none, or nested so deeply that copying it could exhaust the stack.
nlohmann::json parse_json(std::string_view text);

/// A regular file with one JSON value, of at most 256 MiB; InputError: names the path and what is wrong.
nlohmann::json read_json(const std::filesystem::path& path);

/// Whole or not at all; std::runtime_error. Bytes that are no UTF-8 are replaced by U+FFFD.
void write_json(const std::filesystem::path& path, const nlohmann::ordered_json& value);

}  // namespace openmsa::io
