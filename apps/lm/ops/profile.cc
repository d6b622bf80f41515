#include "lm/ops/profile.h"

#include <utility>

namespace openmsa::lm {
namespace {

thread_local Profile* current = nullptr;

}  // namespace

Profile::Profile() : outer_(std::exchange(current, this)) {}
Profile::~Profile() { current = outer_; }

TimedPart::TimedPart(Part part) : part_(part), start_(std::chrono::steady_clock::now()) {}

TimedPart::~TimedPart() {
  if (current == nullptr) return;
  const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - start_;
  current->milliseconds_[static_cast<std::size_t>(part_)] += time.count();
}

}  // namespace openmsa::lm
