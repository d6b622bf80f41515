// JSON files: figures of a run, model configurations.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

namespace openmsa::io {

/// A whole file; InputError: names the path and the system's reason.
std::string read_text(const std::filesystem::path& path);

/// A file with one JSON value; InputError: names the path and what is wrong.
nlohmann::json read_json(const std::filesystem::path& path);

/// Whole or not at all; std::runtime_error. Bytes that are no UTF-8 are replaced by U+FFFD.
void write_json(const std::filesystem::path& path, const nlohmann::ordered_json& value);

}  // namespace openmsa::io
