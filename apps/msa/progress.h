// A progress bar on stderr for anything longer than two seconds; silent when stderr is no terminal.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace openmsa::cli {

/// Shows "label  [#####     ]  42 %  note  eta 0:31" from two seconds after construction on, at most ten times a
/// second. The line is cleared by finish() and by the destructor.
class Progress {
 public:
  Progress(std::string label, std::int64_t total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void update(std::int64_t done, const std::string& note = "");
  void finish();

 private:
  using Clock = std::chrono::steady_clock;
  std::string label_;
  std::int64_t total_;
  bool enabled_;
  bool shown_ = false;
  Clock::time_point start_;
  Clock::time_point last_;
};

}  // namespace openmsa::cli
