// Repeated measurements of one thing.
#pragma once

#include <algorithm>
#include <chrono>
#include <vector>

namespace openmsa::cli {

class Timing {
 public:
  /// Calls `work` once and keeps how long it took.
  template <class Work>
  void measure(Work&& work) {
    const auto start = std::chrono::steady_clock::now();
    work();
    keep(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }

  /// Keeps a time that was measured elsewhere.
  void keep(double milliseconds) {
    milliseconds_.insert(std::upper_bound(milliseconds_.begin(), milliseconds_.end(), milliseconds), milliseconds);
  }

  double median() const { return milliseconds_[milliseconds_.size() / 2]; }
  double min() const { return milliseconds_.front(); }
  double max() const { return milliseconds_.back(); }

 private:
  std::vector<double> milliseconds_;  // ascending
};

}  // namespace openmsa::cli
