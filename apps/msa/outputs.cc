#include "msa/outputs.h"

#include <filesystem>
#include <map>

#include "io/atomic_file.h"
#include "io/error.h"

namespace openmsa::cli {

void check_outputs(std::initializer_list<Output> outputs) {
  std::map<std::filesystem::path, const char*> options;
  for (const Output& output : outputs) {
    if (output.path.empty() || io::is_device_or_pipe(output.path)) continue;
    const auto [other, is_new] = options.emplace(io::output_target(output.path), output.option);
    if (!is_new) throw io::InputError(std::string(other->second) + ", " + output.option + ": both name " + output.path);
  }
  for (const Output& output : outputs) {
    if (!output.path.empty()) io::require_creatable(output.path);
  }
}

}  // namespace openmsa::cli
