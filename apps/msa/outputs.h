// The files that a command is going to write.
#pragma once

#include <initializer_list>
#include <string>

namespace openmsa::cli {

/// An option and the file that it names; "" where it is not given.
struct Output {
  const char* option;
  std::string path;
};

/// Called before the work. io::InputError when two options name one file, std::runtime_error when a file cannot be
/// created.
void check_outputs(std::initializer_list<Output> outputs);

}  // namespace openmsa::cli
