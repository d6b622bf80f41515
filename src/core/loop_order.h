// What ThreadSanitizer must be told about loops of oneTBB, into which it does not see. The files that call oneTBB are
// built without it (OPENMSA_WITH_TSAN), and tell it themselves what comes before what.
#pragma once

#ifdef OPENMSA_WITH_TSAN
#include <sanitizer/tsan_interface.h>
#endif

namespace openmsa::core {

/// A loop's order: all that its caller did comes before every item, and every item before all that the caller does
/// next. Nothing is said of the order of items, so races between them are found. In other builds it is nothing.
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
