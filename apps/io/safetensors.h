// Safetensors files: named tensors after a JSON header (https://github.com/huggingface/safetensors, format section).
#pragma once

#include <openmsa/openmsa.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace openmsa::io {

/// Element types that openmsa reads or writes; a file may hold others in tensors that nobody asks for.
enum class ElementType { kF64, kF32, kF16, kBF16, kI64, kI32, kOther };

/// One tensor of an open file. `data` is row-major, aligned to its element type, points into the mapped file (or a copy
/// where the file is not aligned) and lives as long as the SafetensorsFile or a copy of it.
struct StoredTensor {
  ElementType type;
  std::string type_name;  // as in the file: "F32", "BF16", ...
  std::vector<std::int64_t> shape;
  const std::byte* data;
  std::size_t bytes;

  std::int64_t size() const;            // number of elements
  std::vector<float> to_float() const;  // F64, F32, F16, BF16 converted; InputError for others
  openmsa_tensor view() const;          // InputError for I64 and kOther, or more than OPENMSA_MAX_RANK dimensions
};

/// A file mapped read-only. The header is untrusted: offsets, sizes, types and overlaps are checked when it is opened.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);  // InputError: names the path and what is wrong
  const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  bool contains(const std::string& name) const { return tensors_.contains(name); }
  const StoredTensor& at(const std::string& name) const;  // InputError: names the file and the tensor

 private:
  std::filesystem::path path_;
  std::shared_ptr<const std::byte> mapping_;
  std::vector<std::shared_ptr<const std::byte>> copies_;  // of tensors that lie misaligned in the file
  std::map<std::string, StoredTensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

/// Collects tensors and writes them as one file that appears whole or not at all (temporary file, fsync, rename).
class SafetensorsWriter {
 public:
  /// `data` must stay valid until write().
  void add(std::string name, ElementType type, std::vector<std::int64_t> shape, const void* data);
  /// A contiguous view, as the library fills it.
  void add(std::string name, const openmsa_tensor& tensor);
  void set_metadata(std::string key, std::string value);
  void write(const std::filesystem::path& path) const;  // std::runtime_error: names the path and the system's reason

 private:
  struct Item {
    std::string name;
    ElementType type;
    std::vector<std::int64_t> shape;
    const void* data;
  };
  std::vector<Item> items_;
  std::set<std::string> names_;  // of the items
  std::map<std::string, std::string> metadata_;
};

}  // namespace openmsa::io
