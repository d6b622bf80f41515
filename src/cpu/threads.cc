#include "cpu/threads.h"

#include <tbb/global_control.h>
#include <tbb/info.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include <algorithm>

#include "core/loop_order.h"

namespace openmsa::cpu {

struct Threads::Arena {
  explicit Arena(int count) : arena(count) {}
  mutable tbb::task_arena arena;
};

int Threads::available() { return tbb::info::default_concurrency(); }

// An arena larger than TBB's limit on threads would make TBB print a warning.
Threads::Threads(int count)
    : arena_(std::make_unique<Arena>(std::min(
          count, static_cast<int>(tbb::global_control::active_value(tbb::global_control::max_allowed_parallelism))))) {}
Threads::~Threads() = default;

void Threads::run(std::int64_t count, const void* body, Call call) const {
  core::LoopOrder order;
  arena_->arena.execute([&] {
    const core::LoopOrder::Item all(order);  // this may be another thread than the caller's
    tbb::parallel_for(
        std::int64_t{0}, count,
        [&](std::int64_t item) {
          const core::LoopOrder::Item in_order(order);
          call(body, item, tbb::this_task_arena::current_thread_index());
        },
        tbb::simple_partitioner());
  });
}

}  // namespace openmsa::cpu
