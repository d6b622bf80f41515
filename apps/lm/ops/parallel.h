// Work over rows in chunks of a fixed size: what a chunk computes does not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

namespace openmsa::lm {

inline std::int64_t num_chunks(std::int64_t rows, std::int64_t chunk) { return (rows + chunk - 1) / chunk; }

/// Calls call(body, index) for every index in [0, count), on all threads; in a child of fork whose parent has run loops,
/// on the calling one.
void parallel_loop(std::int64_t count, const void* body, void (*call)(const void* body, std::int64_t index));

/// Calls body(begin, end) for the chunks [begin, end) that cover [0, rows), on all threads.
template <class Body>
void parallel_chunks(std::int64_t rows, std::int64_t chunk, const Body& body) {
  const auto one = [&](std::int64_t index) { body(index * chunk, std::min(rows, (index + 1) * chunk)); };
  parallel_loop(num_chunks(rows, chunk), &one,
                [](const void* erased, std::int64_t index) { (*static_cast<const decltype(one)*>(erased))(index); });
}

/// At most `count` threads work on loops and matrix products while a ThreadLimit lives; 0: openmsa_default_threads.
/// Attention takes the number through its plan.
class ThreadLimit {
 public:
  explicit ThreadLimit(int count);
  ~ThreadLimit();

 private:
  struct Control;
  std::unique_ptr<Control> control_;
};

}  // namespace openmsa::lm
