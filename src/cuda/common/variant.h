// Tables of compiled kernels: one row per combination of template arguments.
#pragma once

#include <openmsa/openmsa.h>

#include <cstddef>

#include "core/error.h"

namespace openmsa::cuda {

template <class Key, class Function>
struct Variant {
  Key key;
  Function* function;
};

/// The key of kernels that have one version for each type and dimension.
struct DtypeAndDim {
  openmsa_dtype dtype;
  int dim;  // of heads or of the index branch
  bool operator==(const DtypeAndDim&) const = default;
};

/// The kernel that was compiled for `key`: there is one for every plan that check_plan lets pass.
template <class Key, class Function, std::size_t kCount>
Function* find_variant(const Variant<Key, Function> (&variants)[kCount], const Key& key, const char* stage) {
  for (const Variant<Key, Function>& variant : variants) {
    if (variant.key == key) return variant.function;
  }
  core::fail(OPENMSA_INTERNAL, stage, ": no kernel for this plan");
}

}  // namespace openmsa::cuda
