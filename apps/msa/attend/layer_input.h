// One attention layer as a safetensors file gives it: the tensors by name, and the configuration their shapes imply.
#pragma once

#include <initializer_list>
#include <openmsa/openmsa.hpp>
#include <string>

#include "io/safetensors.h"

namespace openmsa::cli {

using TensorMember = openmsa_tensor Tensors::*;

inline bool present(const openmsa_tensor& tensor) { return tensor.data != nullptr; }

/// Name of a member as in openmsa_tensors, for example "block_table".
const char* member_name(TensorMember member);

/// A call's tensors: those of `members` that `from` has; the others absent.
Tensors pick(const Tensors& from, std::initializer_list<TensorMember> members);

class LayerInput {
 public:
  /// io::InputError: a file that is none, tensors missing or with a rank that says nothing about the layer.
  explicit LayerInput(const std::string& path);

  const Tensors& tensors() const { return tensors_; }
  bool is_paged() const { return present(tensors_.k_cache); }

  /// io::InputError when `member` is absent.
  void require(TensorMember member) const;

  /// Extent of a tensor with `rank` dimensions; io::InputError when it has another rank or the tensor is absent.
  std::int64_t extent(TensorMember member, int rank, int axis) const;

  /// Heads, dimensions, page size, dtype and capacities; the rest as config() sets it.
  Config layer_config() const;

 private:
  std::string path_;
  io::SafetensorsFile file_;
  Tensors tensors_;
};

}  // namespace openmsa::cli
