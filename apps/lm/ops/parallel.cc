#include "lm/ops/parallel.h"

#include <tbb/global_control.h>
#include <tbb/parallel_for.h>

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

}  // namespace

// All that the caller did comes before every item, and every item before all that the caller does next. Nothing is said
// of the order of items, so that races between them are found.
void parallel_loop(std::int64_t count, const void* body, void (*call)(const void* body, std::int64_t index)) {
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
  if (count == 0) return;
  control_.reset(new Control{{tbb::global_control::max_allowed_parallelism, static_cast<std::size_t>(count)}});
}

ThreadLimit::~ThreadLimit() = default;

}  // namespace openmsa::lm
