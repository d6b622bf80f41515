#include "lm/ops/threads.h"

#include <tbb/global_control.h>

namespace openmsa::lm {

struct ThreadLimit::Control {
  tbb::global_control limit;
};

ThreadLimit::ThreadLimit(int count) {
  if (count == 0) return;
  control_.reset(new Control{{tbb::global_control::max_allowed_parallelism, static_cast<std::size_t>(count)}});
}

ThreadLimit::~ThreadLimit() = default;

}  // namespace openmsa::lm
