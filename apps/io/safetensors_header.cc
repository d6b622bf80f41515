#include "io/safetensors_header.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "io/element_types.h"
#include "io/error.h"

namespace openmsa::io {
namespace {

using nlohmann::json;

/// Builds the members of the header one after the other and hands each out, so that the whole tree, many times as large
/// as its text, is never there. Rejects repeated names, anything nested deeper than {"name": {"shape": []}}, and members
/// that no writer makes.
class MemberReader : public nlohmann::json_sax<json> {
 public:
  using Member = std::function<void(const std::string& name, const json& value)>;

  explicit MemberReader(Member member) : member_(std::move(member)) {}

  bool null() override { return add(json()); }
  bool boolean(bool value) override { return add(json(value)); }
  bool number_integer(json::number_integer_t value) override { return add(json(value)); }
  bool number_unsigned(json::number_unsigned_t value) override { return add(json(value)); }
  bool number_float(json::number_float_t value, const std::string&) override { return add(json(value)); }
  bool string(std::string& value) override { return add(json(std::move(value))); }
  bool binary(json::binary_t&) override { return false; }
  bool start_object(std::size_t) override { return open(json::object()); }
  bool start_array(std::size_t) override { return open(json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception&) override { return false; }

  bool key(std::string& name) override {
    const bool is_new = open_.size() == 1 ? names_.insert(name).second : !open_.back()->contains(name);
    if (!is_new) throw InputError("the header repeats the name '" + name + "'");
    (open_.size() == 1 ? name_ : key_) = std::move(name);
    return true;
  }

 private:
  /// Puts `value` where it belongs; a member that is complete with it goes out.
  bool add(json value) {
    place(std::move(value));
    if (open_.size() == 1) member_(name_, value_);
    return true;
  }

  bool open(json container) {
    constexpr std::size_t kMaxDepth = 3;
    if (open_.size() == kMaxDepth) throw InputError("the header is nested too deeply");
    open_.push_back(open_.empty() ? nullptr : &place(std::move(container)));
    return true;
  }

  bool close() {
    open_.pop_back();
    if (open_.size() == 1) member_(name_, value_);
    return true;
  }

  json& place(json value) {
    constexpr std::size_t kMaxValues = 1 << 16;  // of one member
    if (open_.size() <= 1) {
      num_values_ = 0;
      return value_ = std::move(value);
    }
    if (++num_values_ > kMaxValues)
      throw InputError("'" + name_ + "': more than " + std::to_string(kMaxValues) + " values");
    json& parent = *open_.back();
    if (parent.is_array()) return parent.emplace_back(std::move(value));
    return parent[key_] = std::move(value);
  }

  Member member_;
  std::set<std::string> names_;  // of the members so far
  std::string name_;             // of the member that is being read, ...
  json value_;                   // ... what there is of it ...
  std::size_t num_values_ = 0;
  std::string key_;          // ... and the name inside of it that was read last
  std::vector<json*> open_;  // the header itself (null), then what is open inside `value_`
};

void read_members(std::string_view text, MemberReader::Member member) {
  MemberReader reader(std::move(member));
  const std::size_t begin = text.find_first_not_of(" \t\r\n");
  const bool is_object = begin != std::string_view::npos && text[begin] == '{';
  if (!is_object || !json::sax_parse(text.begin(), text.end(), &reader)) {
    throw InputError("the header is no JSON object");
  }
}

std::uint64_t to_uint(const json& value) {
  if (!value.is_number_unsigned()) throw InputError("expected a whole number, got " + std::string(value.type_name()));
  const auto number = value.get<std::uint64_t>();
  if (number > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
    throw InputError("number too large: " + std::to_string(number));
  }
  return number;
}

const json& field(const json& entry, const char* name) {
  const auto found = entry.find(name);
  if (found == entry.end()) throw InputError("'" + std::string(name) + "' is missing");
  return *found;
}

/// One entry of the header: type, shape and offsets agree with one another and with the data section's size.
HeaderEntry parse_entry(const json& entry, std::uint64_t data_bytes) {
  if (!entry.is_object()) throw InputError("expected an object, got " + std::string(entry.type_name()));
  const json& type_name = field(entry, "dtype");
  const json& shape = field(entry, "shape");
  const json& offsets = field(entry, "data_offsets");
  if (!type_name.is_string()) throw InputError("'dtype' is no string");
  if (!shape.is_array()) throw InputError("'shape' is no array");
  if (!offsets.is_array() || offsets.size() != 2) throw InputError("'data_offsets' is no pair");

  HeaderEntry tensor{};
  tensor.type_name = type_name.get<std::string>();
  for (const json& extent : shape) tensor.shape.push_back(static_cast<std::int64_t>(to_uint(extent)));
  tensor.begin = to_uint(offsets[0]);
  tensor.end = to_uint(offsets[1]);
  if (tensor.begin > tensor.end || tensor.end > data_bytes) {
    throw InputError("data_offsets [" + std::to_string(tensor.begin) + ", " + std::to_string(tensor.end) +
                     "] do not fit the file's " + std::to_string(data_bytes) + " bytes of data");
  }
  std::uint64_t elements = 0;
  if (!count_elements(tensor.shape, elements)) throw InputError("'shape' is too large");
  const ElementTypeInfo* type = find_type(tensor.type_name);
  tensor.type = type ? type->type : ElementType::kOther;
  std::uint64_t bytes = 0;
  if (type && (__builtin_mul_overflow(elements, type->bytes, &bytes) || bytes != tensor.end - tensor.begin)) {
    throw InputError("dtype and shape need " + std::to_string(elements) + " x " + std::to_string(type->bytes) +
                     " bytes, data_offsets give " + std::to_string(tensor.end - tensor.begin));
  }
  return tensor;
}

/// The format wants every byte of the data section to belong to exactly one tensor.
void check_cover(const Header& header, std::uint64_t data_bytes) {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> spans;
  for (const auto& [name, entry] : header.entries) spans.emplace_back(entry.begin, entry.end);
  spans.emplace_back(data_bytes, data_bytes);
  std::sort(spans.begin(), spans.end());
  std::uint64_t covered = 0;
  for (const auto& [begin, end] : spans) {
    if (begin < covered) throw InputError("tensors overlap at data offset " + std::to_string(begin));
    if (begin > covered) throw InputError("no tensor holds the data at offset " + std::to_string(covered));
    covered = end;
  }
}

std::map<std::string, std::string> parse_metadata(const json& entry) {
  if (!entry.is_object()) throw InputError("__metadata__ is no object");
  std::map<std::string, std::string> metadata;
  for (const auto& [key, value] : entry.items()) {
    if (!value.is_string()) throw InputError("__metadata__: '" + key + "' is no string");
    metadata[key] = value.get<std::string>();
  }
  return metadata;
}

}  // namespace

Header parse_header(std::string_view text, std::uint64_t data_bytes) {
  Header header;
  read_members(text, [&](const std::string& name, const json& value) {
    try {
      if (name == kMetadata) {
        header.metadata = parse_metadata(value);
      } else {
        header.entries.emplace(name, parse_entry(value, data_bytes));
      }
    } catch (const InputError& error) {
      throw InputError("tensor '" + name + "': " + error.what());
    }
  });
  check_cover(header, data_bytes);
  return header;
}

}  // namespace openmsa::io
