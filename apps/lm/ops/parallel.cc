#include "lm/ops/parallel.h"

#include <tbb/parallel_for.h>

#include "core/loop_order.h"

namespace openmsa::lm {

void parallel_loop(std::int64_t count, const void* body, void (*call)(const void* body, std::int64_t index)) {
  core::LoopOrder order;
  tbb::parallel_for(std::int64_t{0}, count, [&](std::int64_t index) {
    const core::LoopOrder::Item in_order(order);
    call(body, index);
  });
}

}  // namespace openmsa::lm
