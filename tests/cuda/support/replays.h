// Calls in a CUDA graph, replayed.
#pragma once

#include <span>

#include "support/run.h"

namespace openmsa::test {

/// Captures `op` on the first of `steps`, then replays it with the values of each in place of those before: expects the
/// bits of a fresh run.
void expect_replays_follow(std::span<const Layer> steps, openmsa_op op);

/// Twenty replays of one call give the same bits.
void expect_equal_replays(const Layer& layer, openmsa_op op);

}  // namespace openmsa::test
