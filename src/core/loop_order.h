// The order of oneTBB's loops, for ThreadSanitizer, which does not see into them. Files that call oneTBB are built
// without instrumentation (OPENMSA_WITH_TSAN) and tell ThreadSanitizer themselves what comes before what.
#pragma once

#ifdef OPENMSA_WITH_TSAN
#include <sanitizer/tsan_interface.h>
#endif

namespace openmsa::core {

/// The order of one loop: all that its caller did comes before every item, and every item before all that the caller
/// does next. The order among items is left open, so that races between them are found. Does nothing in other builds.
class LoopOrder {
 public:
  LoopOrder() { release(&begin_); }
  ~LoopOrder() { acquire(&end_); }
  LoopOrder(const LoopOrder&) = delete;
  LoopOrder& operator=(const LoopOrder&) = delete;

  /// Lives as long as the item is worked on.
  class Item {
   public:
    explicit Item(LoopOrder& order) : order_(order) { acquire(&order.begin_); }
    ~Item() { release(&order_.end_); }
    Item(const Item&) = delete;
    Item& operator=(const Item&) = delete;

   private:
    LoopOrder& order_;
  };

 private:
#ifdef OPENMSA_WITH_TSAN
  static void acquire(char* at) { __tsan_acquire(at); }
  static void release(char* at) { __tsan_release(at); }
#else
  static void acquire(char*) {}
  static void release(char*) {}
#endif

  char begin_ = 0, end_ = 0;  // places to name; their values mean nothing
};

}  // namespace openmsa::core
