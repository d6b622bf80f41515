// log.jsonl of a training run: one JSON object per line, the first "start", then "step"s, the last "end".
#pragma once

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

namespace openmsa::lm {

class TrainingLog {
 public:
  /// Starts the file anew, or keeps what a run that is resumed after `steps_done` steps has logged up to there.
  /// std::runtime_error when the file cannot be written.
  TrainingLog(const std::filesystem::path& path, std::int64_t steps_done);

  void write(const nlohmann::ordered_json& event);

 private:
  std::filesystem::path path_;
  std::ofstream stream_;
};

}  // namespace openmsa::lm
