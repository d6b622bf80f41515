// One attention layer as a safetensors file gives it: the tensors by name, and the configuration their shapes imply.
#pragma once

#include <openmsa/openmsa.hpp>
#include <string>

#include "io/safetensors.h"
#include "msa/tensors.h"

namespace openmsa::cli {

class LayerInput {
 public:
  /// io::InputError: a file that is none, tensors missing or with a rank that says nothing about the layer.
  explicit LayerInput(const std::string& path);

  const Tensors& tensors() const { return tensors_; }
  bool is_paged() const { return present(tensors_.k_cache); }

  /// io::InputError when the tensor `name` is absent.
  void require(const char* name) const;

  /// Extent of a tensor with `rank` dimensions; io::InputError when it has another rank or the tensor is absent.
  std::int64_t extent(const char* name, int rank, int axis) const;

  /// Heads, dimensions, page size, dtype and capacities; the rest as config() sets it.
  Config layer_config() const;

 private:
  std::string path_;
  io::SafetensorsFile file_;
  Tensors tensors_;
};

}  // namespace openmsa::cli
