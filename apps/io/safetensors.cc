#include "io/safetensors.h"

#include <bit>
#include <cstring>
#include <new>
#include <utility>

#include "io/dtype.h"
#include "io/element_types.h"
#include "io/error.h"
#include "io/mapped_file.h"
#include "io/safetensors_header.h"

namespace openmsa::io {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

/// Views need elements at their natural alignment, which the format recommends but does not promise.
std::shared_ptr<const std::byte> aligned_copy(const StoredTensor& tensor) {
  constexpr std::align_val_t kAlignment{64};
  auto* memory = static_cast<std::byte*>(::operator new(tensor.bytes, kAlignment));
  std::memcpy(memory, tensor.data, tensor.bytes);
  return {memory, [](const std::byte* data) { ::operator delete(const_cast<std::byte*>(data), kAlignment); }};
}

bool is_aligned(const StoredTensor& tensor) {
  return tensor.type == ElementType::kOther ||
         reinterpret_cast<std::uintptr_t>(tensor.data) % info(tensor.type).bytes == 0;
}

template <class Stored>
std::vector<float> convert(const StoredTensor& tensor) {
  std::vector<float> values(static_cast<std::size_t>(tensor.size()));
  for (std::size_t i = 0; i < values.size(); ++i) {
    Stored element;
    std::memcpy(&element, tensor.data + i * sizeof(Stored), sizeof(Stored));
    values[i] = io::to_float(element);
  }
  return values;
}

}  // namespace

std::int64_t StoredTensor::size() const {
  std::uint64_t count = 0;
  count_elements(shape, count);
  return static_cast<std::int64_t>(count);
}

std::vector<float> StoredTensor::to_float() const {
  switch (type) {
    case ElementType::kF64:
      return convert<double>(*this);
    case ElementType::kF32:
      return convert<float>(*this);
    case ElementType::kF16:
      return convert<Float16>(*this);
    case ElementType::kBF16:
      return convert<BFloat16>(*this);
    default:
      throw InputError("expected a floating-point tensor, got " + type_name);
  }
}

openmsa_tensor StoredTensor::view() const {
  if (shape.size() > OPENMSA_MAX_RANK) {
    throw InputError("expected at most " + std::to_string(OPENMSA_MAX_RANK) + " dimensions, got " +
                     std::to_string(shape.size()));
  }
  const ElementTypeInfo* row = find_type(type_name);
  if (!row || row->dtype == 0) throw InputError("expected F32, BF16, F16, F64 or I32, got " + type_name);
  const auto dtype = static_cast<openmsa_dtype>(row->dtype);
  return openmsa_contiguous(const_cast<std::byte*>(data), dtype, static_cast<std::int32_t>(shape.size()), shape.data());
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) try : path_(path) {
  const MappedFile file = map_file(path, kLengthBytes);
  mapping_ = file.data;
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data.get(), kLengthBytes);
  if (header_bytes > kMaxHeaderBytes || header_bytes > file.bytes - kLengthBytes) {
    throw InputError("a header of " + std::to_string(header_bytes) + " bytes does not fit; no safetensors file?");
  }
  const auto* text = reinterpret_cast<const char*>(file.data.get()) + kLengthBytes;
  const std::byte* data = file.data.get() + kLengthBytes + header_bytes;
  Header header = parse_header({text, header_bytes}, file.bytes - kLengthBytes - header_bytes);

  metadata_ = std::move(header.metadata);
  for (auto& [name, entry] : header.entries) {
    StoredTensor tensor{entry.type, std::move(entry.type_name), std::move(entry.shape), data + entry.begin,
                        entry.end - entry.begin};
    if (!is_aligned(tensor)) tensor.data = copies_.emplace_back(aligned_copy(tensor)).get();
    tensors_.emplace(name, std::move(tensor));
  }
} catch (const InputError& error) {
  throw InputError(path.string() + ": " + error.what());
}

const StoredTensor& SafetensorsFile::at(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) throw InputError(path_.string() + ": no tensor '" + name + "'");
  return found->second;
}

}  // namespace openmsa::io
