#include "io/json_file.h"

#include <cerrno>
#include <fstream>
#include <sstream>
#include <system_error>

#include "io/atomic_file.h"
#include "io/error.h"

namespace openmsa::io {

std::string read_text(const std::filesystem::path& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (!file || (file.peek() != std::ifstream::traits_type::eof() && !(text << file.rdbuf()))) {
    throw InputError("cannot read " + path.string() + ": " + std::generic_category().message(errno));
  }
  if (file.bad()) throw InputError("cannot read " + path.string());
  return std::move(text).str();
}

nlohmann::json parse_json(std::string_view text) {
  constexpr int kMaxDepth = 64;
  const auto inspect = [](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
    if (depth > kMaxDepth) throw InputError("nested too deeply");
    return true;
  };
  nlohmann::json value = nlohmann::json::parse(text, inspect, /*allow_exceptions=*/false);
  if (value.is_discarded()) throw InputError("no valid JSON");
  return value;
}

nlohmann::json read_json(const std::filesystem::path& path) {
  constexpr std::uintmax_t kMaxBytes = std::uintmax_t{256} << 20;
  std::error_code error;
  if (std::filesystem::is_regular_file(path, error) && std::filesystem::file_size(path) > kMaxBytes) {
    throw InputError(path.string() + ": larger than 256 MiB");
  }
  if (is_device_or_pipe(path)) throw InputError(path.string() + ": not a regular file");
  const std::string text = read_text(path);
  try {
    return parse_json(text);
  } catch (const InputError& reason) {
    throw InputError(path.string() + ": " + reason.what());
  }
}

void write_json(const std::filesystem::path& path, const nlohmann::ordered_json& value) {
  AtomicFile file(path);
  file.write(value.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
  file.commit();
}

}  // namespace openmsa::io
