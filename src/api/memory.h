// The memory that a tensor's elements take.
#pragma once

#include <openmsa/openmsa.h>

#include <cstddef>
#include <optional>

namespace openmsa::api {

/// Whether the shape has no element.
bool is_empty(const openmsa_tensor& tensor);

/// Bytes from the begin of a tensor's first element to the end of its last one, for a tensor that has any; nothing where
/// an offset or an address is past 64 bits.
std::optional<std::size_t> bytes_spanned(const openmsa_tensor& tensor);

/// Whether an element lies in [memory, memory + bytes), as far as that can be told: a view with gaps may leave the
/// memory between its elements alone.
bool shares_memory(const openmsa_tensor& tensor, const void* memory, std::size_t bytes);

}  // namespace openmsa::api
