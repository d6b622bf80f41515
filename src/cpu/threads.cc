#include "cpu/threads.h"

#include <tbb/global_control.h>
#include <tbb/info.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>

#include "core/loop_order.h"

namespace openmsa::cpu {
namespace {

/// The process that has run a loop on oneTBB; 0: none has. Its child by fork inherits oneTBB's records of threads that
/// it does not have, and its locks as they were, for ever held if they were: it must not call oneTBB.
constinit std::atomic<pid_t> owner{0};

bool is_orphan() {
  const pid_t process = owner.load();
  return process != 0 && process != ::getpid();
}

/// Whether this process is the owner, or becomes it.
bool own() {
  const pid_t self = ::getpid();
  pid_t process = 0;
  return owner.compare_exchange_strong(process, self) || process == self;
}

}  // namespace

struct Threads::Arena {
  explicit Arena(int count) : arena(count) {}
  mutable tbb::task_arena arena;
};

int Threads::available() { return is_orphan() ? 1 : tbb::info::default_concurrency(); }

// An arena larger than TBB's limit on threads would make TBB print a warning. One of a single thread has a second slot
// (for tasks that nobody waits for), which a second caller would be given: one thread is the caller's own.
Threads::Threads(int count) {
  if (is_orphan()) return;
  const auto most = tbb::global_control::active_value(tbb::global_control::max_allowed_parallelism);
  const int threads = std::min(count, static_cast<int>(most));
  if (threads > 1) arena_ = std::make_unique<Arena>(threads);
}

Threads::~Threads() {
  if (is_orphan()) static_cast<void>(arena_.release());  // it cannot be taken down without oneTBB
}

void Threads::run(std::int64_t count, const void* body, Call call) const {
  if (arena_ == nullptr || !own()) {
    for (std::int64_t item = 0; item < count; ++item) call(body, item, 0);
    return;
  }
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
