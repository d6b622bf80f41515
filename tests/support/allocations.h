// How often this process has asked for memory: malloc and all that is made of it, operator new too, on every thread.
#pragma once

#include <cstdint>

namespace openmsa::test {

/// Since the start. A program that links allocations.cc has its memory functions counted.
std::int64_t num_allocations();

}  // namespace openmsa::test
