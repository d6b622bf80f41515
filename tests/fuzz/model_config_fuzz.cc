// config.json of any content: a ModelConfig that survives being written and read again, or an InputError.
#include <stdexcept>

#include "io/error.h"
#include "io/json_file.h"
#include "lm/model/config.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace openmsa;
  try {
    const auto json = io::parse_json({reinterpret_cast<const char*>(data), size});
    const lm::ModelConfig config = lm::config_from_json(json);
    lm::check_config(config);
    const nlohmann::json written = lm::config_to_json(config);
    if (lm::config_to_json(lm::config_from_json(written)) != written)
      throw std::logic_error("written: " + written.dump());
  } catch (const io::InputError&) {
  }
  return 0;
}
