// Tables of compiled kernels: one row per combination of template arguments.
#pragma once

#include <cstddef>

#include "core/error.h"

namespace openmsa::cuda {

template <class Key, class Function>
struct Variant {
  Key key;
  Function* function;
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
