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

nlohmann::json read_json(const std::filesystem::path& path) {
  nlohmann::json value = nlohmann::json::parse(read_text(path), nullptr, /*allow_exceptions=*/false);
  if (value.is_discarded()) throw InputError(path.string() + ": no valid JSON");
  return value;
}

void write_json(const std::filesystem::path& path, const nlohmann::ordered_json& value) {
  AtomicFile file(path);
  file.write(value.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
  file.commit();
}

}  // namespace openmsa::io
