// How many threads the model's own loops and matrix products use; attention takes the number through its plan.
#pragma once

#include <memory>

namespace openmsa::lm {

/// While it lives, at most `count` threads work; 0: one per core.
class ThreadLimit {
 public:
  explicit ThreadLimit(int count);
  ~ThreadLimit();

 private:
  struct Control;
  std::unique_ptr<Control> control_;
};

}  // namespace openmsa::lm
