// Threads over independent work items.
#pragma once

#include <cstdint>
#include <memory>

#include "core/backend.h"

namespace openmsa::cpu {

class Threads : public core::BackendState {
 public:
  /// Cores that this process may use. A child of fork whose parent has run loops has one.
  static int available();

  explicit Threads(int count);
  ~Threads() override;

  /// Calls body(item, slot) for every item in [0, count), in any order. `slot`, below the number of threads, tells
  /// apart the calls that may run at the same time. Several threads may call for_each at once. In a child of fork
  /// whose parent has run loops all calls are made by the calling thread.
  template <class Body>
  void for_each(std::int64_t count, const Body& body) const {
    run(count, &body,
        [](const void* erased, std::int64_t item, int slot) { (*static_cast<const Body*>(erased))(item, slot); });
  }

 private:
  using Call = void (*)(const void* body, std::int64_t item, int slot);
  void run(std::int64_t count, const void* body, Call call) const;

  struct Arena;
  std::unique_ptr<Arena> arena_;  // null: the calling thread alone
};

}  // namespace openmsa::cpu
