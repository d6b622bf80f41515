// How time grows with the size of a problem: time of the processor, for the clock says little on a machine that others
// use.
#pragma once

#include <algorithm>
#include <ctime>
#include <functional>

namespace openmsa::test {

/// How many times as long `work(large)` takes as `work(small)`, the best of three runs of each.
inline double growth(const std::function<void(int)>& work, int small, int large) {
  const auto best_time = [&](int size) {
    double best = 1e18;
    for (int run = 0; run < 3; ++run) {
      const std::clock_t start = std::clock();
      work(size);
      best = std::min(best, static_cast<double>(std::clock() - start));
    }
    return best;
  };
  return best_time(large) / best_time(small);
}

}  // namespace openmsa::test
