// The one exception of the library's inside. It is caught in src/api and becomes a status and the last-error text.
#pragma once

#include <openmsa/openmsa.h>

#include <sstream>
#include <stdexcept>
#include <string>

namespace openmsa::core {

class Failure : public std::runtime_error {
 public:
  Failure(openmsa_status status, const std::string& message) : std::runtime_error(message), status_(status) {}
  openmsa_status status() const noexcept { return status_; }

 private:
  openmsa_status status_;
};

/// Throws a Failure whose message is all `parts` in a row: argument, expected, got.
template <class... Parts>
[[noreturn]] void fail(openmsa_status status, const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Failure(status, message.str());
}

template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) fail(OPENMSA_INVALID_ARGUMENT, parts...);
}

}  // namespace openmsa::core
