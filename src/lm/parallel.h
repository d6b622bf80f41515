// Work over rows in chunks of a fixed size: what a chunk computes does not depend on the number of threads.
#pragma once

#include <tbb/parallel_for.h>

#include <algorithm>
#include <cstdint>

namespace openmsa::lm {

inline std::int64_t num_chunks(std::int64_t rows, std::int64_t chunk) { return (rows + chunk - 1) / chunk; }

/// Calls body(begin, end) for the chunks [begin, end) that cover [0, rows), on all threads.
template <class Body>
void parallel_chunks(std::int64_t rows, std::int64_t chunk, const Body& body) {
  tbb::parallel_for(std::int64_t{0}, num_chunks(rows, chunk),
                    [&](std::int64_t index) { body(index * chunk, std::min(rows, (index + 1) * chunk)); });
}

}  // namespace openmsa::lm
