#include <algorithm>
#include <cstddef>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "io/atomic_file.h"
#include "io/element_types.h"
#include "io/safetensors.h"
#include "io/safetensors_header.h"

namespace openmsa::io {
namespace {

using nlohmann::json;

constexpr std::size_t kDataAlignment = 64;  // of the data section in the file; the format asks for 8

}  // namespace

void SafetensorsWriter::add(std::string name, ElementType type, std::vector<std::int64_t> shape, const void* data) {
  std::uint64_t elements = 0;
  if (type == ElementType::kOther || name == kMetadata || !count_elements(shape, elements) ||
      !names_.insert(name).second) {
    throw std::invalid_argument("SafetensorsWriter: cannot add a tensor '" + name + "' of this type and shape");
  }
  items_.push_back({std::move(name), type, std::move(shape), data});
}

void SafetensorsWriter::add(std::string name, const openmsa_tensor& tensor) {
  add(std::move(name), info(tensor.dtype).type, {tensor.shape, tensor.shape + tensor.rank}, tensor.data);
}

void SafetensorsWriter::set_metadata(std::string key, std::string value) {
  metadata_[std::move(key)] = std::move(value);
}

void SafetensorsWriter::write(const std::filesystem::path& path) const {
  // Wide elements first keep every tensor aligned without gaps, which the format forbids; then by name.
  std::vector<const Item*> order;
  for (const Item& item : items_) order.push_back(&item);
  std::sort(order.begin(), order.end(), [](const Item* a, const Item* b) {
    return std::pair(info(b->type).bytes, std::string_view(a->name)) <
           std::pair(info(a->type).bytes, std::string_view(b->name));
  });

  json header = json::object();
  if (!metadata_.empty()) header[kMetadata] = metadata_;
  std::uint64_t end = 0;
  std::vector<std::uint64_t> sizes;
  for (const Item* item : order) {
    std::uint64_t elements = 0;
    count_elements(item->shape, elements);
    sizes.push_back(elements * info(item->type).bytes);
    header[item->name] = {
        {"dtype", info(item->type).name}, {"shape", item->shape}, {"data_offsets", {end, end + sizes.back()}}};
    end += sizes.back();
  }
  std::string text = header.dump(-1, ' ', false, json::error_handler_t::replace);
  while ((kLengthBytes + text.size()) % kDataAlignment != 0) text += ' ';

  AtomicFile file(path);
  const std::uint64_t header_bytes = text.size();
  file.write(&header_bytes, kLengthBytes);
  file.write(text);
  for (std::size_t i = 0; i < order.size(); ++i) file.write(order[i]->data, sizes[i]);
  file.commit();
}

}  // namespace openmsa::io
