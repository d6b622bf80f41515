// How an entry point ends: what its body throws becomes a status and this thread's last error.
#pragma once

#include <openmsa/openmsa.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <exception>
#include <new>

#include "core/error.h"

namespace openmsa::api {

/// Keeps the message for openmsa_last_error and returns the status.
openmsa_status failed(openmsa_status status, const char* message) noexcept;

/// Runs `body`, turning what it throws into a status.
template <class Body>
openmsa_status guarded(const Body& body) noexcept {
  try {
    body();
    return OPENMSA_SUCCESS;
  } catch (const core::Failure& failure) {
    return failed(failure.status(), failure.what());
  } catch (const std::bad_alloc&) {
    return failed(OPENMSA_OUT_OF_MEMORY, "out of memory");
  } catch (const std::exception& error) {
    return failed(OPENMSA_INTERNAL, error.what());
  } catch (...) {
    return failed(OPENMSA_INTERNAL, "unknown exception");
  }
}

/// A copy of a caller's struct, which may come from an older header (shorter: the rest is zero) or a newer one (longer:
/// what this version does not know must be zero).
template <class Struct>
Struct adopt(const Struct* given, const char* name) {
  core::require(given != nullptr, name, ": expected a pointer, got NULL");
  const std::size_t size = given->struct_size;
  core::require(size >= sizeof(size), name, ".struct_size: expected sizeof(openmsa_", name, ") = ", sizeof(Struct),
                ", got ", size);
  Struct result{};
  std::memcpy(static_cast<void*>(&result), given, std::min(size, sizeof(Struct)));
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  for (std::size_t i = sizeof(Struct); i < size; ++i) {
    if (bytes[i] != 0) {
      core::fail(OPENMSA_UNSUPPORTED, name, ": expected nothing past the ", sizeof(Struct), " bytes that version ",
                 openmsa_version(), " knows, got a value at byte ", i);
    }
  }
  result.struct_size = sizeof(Struct);
  return result;
}

}  // namespace openmsa::api
