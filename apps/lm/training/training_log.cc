#include "lm/training/training_log.h"

#include <stdexcept>
#include <string>

namespace openmsa::lm {
namespace {

/// The lines of an earlier run up to step `steps_done`.
std::string kept_lines(const std::filesystem::path& path, std::int64_t steps_done) {
  std::string kept;
  std::ifstream stream(path);
  for (std::string line; std::getline(stream, line);) {
    const auto event = nlohmann::json::parse(line, nullptr, false);
    if (event.is_discarded() || event.value("event", "") == "end" || event.value("step", 0) > steps_done) break;
    kept += line + '\n';
  }
  return kept;
}

}  // namespace

TrainingLog::TrainingLog(const std::filesystem::path& path, std::int64_t steps_done) : path_(path) {
  const std::string kept = steps_done > 0 ? kept_lines(path, steps_done) : "";
  stream_.open(path, std::ios::trunc);
  stream_ << kept << std::flush;
  if (!stream_) throw std::runtime_error(path.string() + ": cannot write the log");
}

void TrainingLog::write(const nlohmann::ordered_json& event) {
  stream_ << event.dump() << std::endl;
  if (!stream_) throw std::runtime_error(path_.string() + ": cannot write the log");
}

}  // namespace openmsa::lm
