#include "io/json_file.h"

#include <cerrno>
#include <fstream>
#include <sstream>
#include <system_error>

#include "io/atomic_file.h"
#include "io/error.h"

namespace openmsa::io {
namespace {

using nlohmann::json;

/// Walks through a text without keeping it, and throws where the tree would be too deep or too large: a value takes many
/// times the memory of the two characters that ask for it.
class Bounds : public nlohmann::json_sax<json> {
 public:
  bool null() override { return count(); }
  bool boolean(bool) override { return count(); }
  bool number_integer(json::number_integer_t) override { return count(); }
  bool number_unsigned(json::number_unsigned_t) override { return count(); }
  bool number_float(json::number_float_t, const std::string&) override { return count(); }
  bool string(std::string&) override { return count(); }
  bool binary(json::binary_t&) override { return count(); }
  bool key(std::string&) override { return true; }
  bool start_object(std::size_t) override { return open(); }
  bool start_array(std::size_t) override { return open(); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception&) override { return false; }

 private:
  bool count() {
    constexpr std::size_t kMaxValues = 4'000'000;  // the largest vocabularies, with their merges as pairs, have 2
    if (++values_ > kMaxValues) throw InputError("more than " + std::to_string(kMaxValues) + " values");
    return true;
  }
  bool open() {
    constexpr int kMaxDepth = 64;
    if (++depth_ > kMaxDepth) throw InputError("nested too deeply");
    return count();
  }
  bool close() {
    --depth_;
    return true;
  }

  std::size_t values_ = 0;
  int depth_ = 0;
};

}  // namespace

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
  // Before the tree is built: nlohmann's parser with a callback could stop early too, but it walks through the whole
  // parent after every nested object, which makes time quadratic.
  Bounds bounds;
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &bounds)) throw InputError("no valid JSON");
  return nlohmann::json::parse(text.begin(), text.end());
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
