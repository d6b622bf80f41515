// What the loops of a call run on.
#pragma once

#include <cstdint>

#include "core/arena.h"
#include "core/plan.h"
#include "cpu/threads.h"

namespace openmsa::cpu {

/// The plan's threads, and room in the workspace for the index of a loop over all sequences: where the work items of
/// each sequence end. An item finds its sequence by a search there; a walk over the sequences before it would cost the
/// square of their number. The loops of a call run one after the other and share the room.
struct Loops {
  static std::int64_t* take_ends(core::Arena& arena, const core::Plan& plan) {
    return arena.take<std::int64_t>(plan.config.max_batch);
  }

  const Threads& threads;
  std::int64_t* ends;  // [max_batch]
};

}  // namespace openmsa::cpu
