// Where the time of a training step goes. The step runs on one thread, which hands its loops to others; a Profile that
// lives on that thread sums up the time between start and end of each timed part.
#pragma once

#include <array>
#include <chrono>

namespace openmsa::lm {

enum class Part { kProducts, kForward, kBackward, kKlLoss };
inline constexpr int kNumParts = 4;

/// The times of matrix products and of the attention's operations; the rest of a step is what is left of its time.
class Profile {
 public:
  /// Becomes this thread's profile for as long as it lives.
  Profile();
  ~Profile();
  Profile(const Profile&) = delete;
  Profile& operator=(const Profile&) = delete;

  double milliseconds(Part part) const { return milliseconds_[static_cast<std::size_t>(part)]; }

 private:
  friend class TimedPart;
  std::array<double, kNumParts> milliseconds_{};
  Profile* outer_;
};

/// Times a part: its lifetime is added to this thread's profile, if there is one.
class TimedPart {
 public:
  explicit TimedPart(Part part);
  ~TimedPart();
  TimedPart(const TimedPart&) = delete;
  TimedPart& operator=(const TimedPart&) = delete;

 private:
  Part part_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace openmsa::lm
