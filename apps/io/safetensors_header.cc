#include "io/safetensors_header.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "io/element_types.h"
#include "io/error.h"

namespace openmsa::io {
namespace {

using nlohmann::json;

/// Parses the header; rejects repeated names and anything nested deeper than {"name": {"shape": []}}.
json parse_json(std::string_view text) {
  constexpr int kMaxDepth = 2;
  std::vector<std::set<std::string>> names;  // one set per open object
  const auto inspect = [&](int depth, json::parse_event_t event, json& value) {
    switch (event) {
      case json::parse_event_t::object_start:
        names.emplace_back();
        [[fallthrough]];
      case json::parse_event_t::array_start:
        if (depth > kMaxDepth) throw InputError("the header is nested too deeply");
        break;
      case json::parse_event_t::object_end:
        names.pop_back();
        break;
      case json::parse_event_t::key:
        if (!names.back().insert(value.get<std::string>()).second) {
          throw InputError("the header repeats the name '" + value.get<std::string>() + "'");
        }
        break;
      default:
        break;
    }
    return true;
  };
  json header = json::parse(text, inspect, /*allow_exceptions=*/false);
  if (!header.is_object()) throw InputError("the header is no JSON object");
  return header;
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
  const json entries = parse_json(text);
  for (const auto& [name, entry] : entries.items()) {
    try {
      if (name == kMetadata) {
        header.metadata = parse_metadata(entry);
      } else {
        header.entries.emplace(name, parse_entry(entry, data_bytes));
      }
    } catch (const InputError& error) {
      throw InputError("tensor '" + name + "': " + error.what());
    }
  }
  check_cover(header, data_bytes);
  return header;
}

}  // namespace openmsa::io
