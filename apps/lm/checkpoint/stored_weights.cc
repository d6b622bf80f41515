#include "lm/checkpoint/stored_weights.h"

#include <algorithm>
#include <deque>
#include <nlohmann/json.hpp>

#include "io/error.h"
#include "io/tensor_folder.h"
#include "lm/checkpoint/checkpoint_names.h"
#include "lm/checkpoint/memory.h"

namespace openmsa::lm {
namespace {

using io::ElementType;
using io::StoredTensor;

/// One parameter's tensors.
struct Found {
  const Parameter* parameter;
  std::vector<const StoredTensor*> tensors;
};

std::string text(const std::vector<std::int64_t>& shape) { return nlohmann::json(shape).dump(); }

const StoredTensor& find_tensor(const io::TensorFolder& folder, const std::string& name,
                                const std::vector<std::int64_t>& shape) {
  const StoredTensor* tensor = folder.find(name);
  if (!tensor) throw io::InputError("the checkpoint lacks the tensor " + name);
  if (tensor->shape != shape) {
    throw io::InputError(name + ": expected shape " + text(shape) + ", got " + text(tensor->shape));
  }
  return *tensor;
}

/// Looks for the parameter in the first of its forms of which the folder has the first tensor.
Found find(const io::TensorFolder& folder, const Parameter& parameter) {
  const std::vector<StoredNames> forms = stored_names(parameter);
  const auto is_there = [&](const StoredNames& names) { return folder.find(names.front()) != nullptr; };
  const auto form = std::ranges::find_if(forms, is_there);
  if (form == forms.end()) throw io::InputError("the checkpoint lacks the tensor " + parameter.name);

  Found found{&parameter, {}};
  std::vector<std::int64_t> shape = parameter.shape;
  if (form->size() > 1) {  // the rows of a fused matrix, or of one per expert, in equal parts
    const std::int64_t in = shape.back();
    shape = {static_cast<std::int64_t>(parameter.size / form->size()) / in, in};
  }
  for (const std::string& name : *form) found.tensors.push_back(&find_tensor(folder, name, shape));
  return found;
}

bool stays_mapped(const Parameter& parameter, const StoredTensor& tensor) {
  return tensor.type == ElementType::kF32 || (tensor.type == ElementType::kBF16 && parameter.is_matrix());
}

std::uint64_t bytes_in_memory(const Found& found) {
  std::uint64_t sum = 0;
  for (const StoredTensor* tensor : found.tensors) {
    const bool mapped = stays_mapped(*found.parameter, *tensor);
    sum += mapped ? tensor->bytes : static_cast<std::uint64_t>(tensor->size()) * sizeof(float);
  }
  return sum;
}

struct Storage {
  explicit Storage(const std::filesystem::path& path) : folder(path) {}
  io::TensorFolder folder;
  std::deque<std::vector<float>> converted;
};

WeightMatrix matrix_of(const Found& found, Storage& storage) {
  const std::int64_t in = found.parameter->shape.back();
  WeightMatrix matrix{in, {}};
  for (const StoredTensor* tensor : found.tensors) {
    const std::int64_t rows = tensor->size() / in;
    if (!stays_mapped(*found.parameter, *tensor)) {
      matrix.blocks.push_back({rows, storage.converted.emplace_back(tensor->to_float()).data(), nullptr});
    } else if (tensor->type == ElementType::kF32) {
      matrix.blocks.push_back({rows, reinterpret_cast<const float*>(tensor->data), nullptr});
    } else {
      matrix.blocks.push_back({rows, nullptr, reinterpret_cast<const io::BFloat16*>(tensor->data)});
    }
  }
  return matrix;
}

}  // namespace

Weights load_weights(const std::filesystem::path& folder, std::shared_ptr<const ParameterLayout> layout) {
  const auto storage = std::make_shared<Storage>(folder);
  std::vector<Found> found;
  std::uint64_t bytes = 0;
  for (const Parameter& parameter : layout->parameters()) {
    bytes += bytes_in_memory(found.emplace_back(find(storage->folder, parameter)));
  }
  require_memory("the model", bytes);

  std::vector<WeightMatrix> matrices;
  for (const Found& entry : found) matrices.push_back(matrix_of(entry, *storage));
  const bool is_bf16 = matrices[layout->index_of("model.embed_tokens.weight")].blocks.front().bf16 != nullptr;
  return {std::move(layout), storage, std::move(matrices), is_bf16 ? Precision::kBf16 : Precision::kFp32};
}

}  // namespace openmsa::lm
