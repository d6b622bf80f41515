#include "lm/ops/parallel.h"

#include <tbb/global_control.h>
#include <tbb/parallel_for.h>
#include <unistd.h>

#include <atomic>
#include <openmsa/openmsa.hpp>

#ifdef OPENMSA_WITH_TSAN
#include <sanitizer/tsan_interface.h>
#endif

namespace openmsa::lm {
namespace {

// ThreadSanitizer does not see into oneTBB, so this file is built without it (OPENMSA_WITH_TSAN) and says itself what
// comes before what. `at` is a place to name; its value means nothing.
void release([[maybe_unused]] char* at) {
#ifdef OPENMSA_WITH_TSAN
  __tsan_release(at);
#endif
}

void acquire([[maybe_unused]] char* at) {
#ifdef OPENMSA_WITH_TSAN
  __tsan_acquire(at);
#endif
}

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

// All that the caller did comes before every item, and every item before all that the caller does next. Nothing is said
// of the order of items, so that races between them are found.
void parallel_loop(std::int64_t count, const void* body, void (*call)(const void* body, std::int64_t index)) {
  if (!own()) {
    for (std::int64_t index = 0; index < count; ++index) call(body, index);
    return;
  }
  char begin = 0, end = 0;
  release(&begin);
  tbb::parallel_for(std::int64_t{0}, count, [&](std::int64_t index) {
    acquire(&begin);
    call(body, index);
    release(&end);
  });
  acquire(&end);
}

struct ThreadLimit::Control {
  tbb::global_control limit;
};

ThreadLimit::ThreadLimit(int count) {
  if (is_orphan()) return;
  const int most = count == 0 ? default_threads() : count;
  control_.reset(new Control{{tbb::global_control::max_allowed_parallelism, static_cast<std::size_t>(most)}});
}

ThreadLimit::~ThreadLimit() {
  if (is_orphan()) static_cast<void>(control_.release());  // it cannot be taken down without oneTBB
}

}  // namespace openmsa::lm
