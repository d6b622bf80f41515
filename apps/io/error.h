#pragma once

#include <stdexcept>

namespace openmsa::io {

/// Something the user supplied is wrong: a path, a file's contents, a configuration. The msa command exits with 2.
class InputError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace openmsa::io
