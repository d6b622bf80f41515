// The tensors of a call, member by member.
#pragma once

#include <initializer_list>
#include <openmsa/openmsa.hpp>

namespace openmsa::cli {

using TensorMember = openmsa_tensor Tensors::*;

inline bool present(const openmsa_tensor& tensor) { return tensor.data != nullptr; }

/// A call's tensors: those of `members` that `from` has; the others absent.
inline Tensors pick(const Tensors& from, std::initializer_list<TensorMember> members) {
  Tensors result = openmsa::tensors();
  for (TensorMember member : members) result.*member = from.*member;
  return result;
}

}  // namespace openmsa::cli
