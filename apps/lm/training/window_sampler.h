// Batches of windows at random places of a text. A batch depends on (seed, step) alone: resuming needs no saved state,
// and two models with the same seed see the same batches.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace openmsa::lm {

struct Batch {
  std::vector<std::int32_t> inputs;   // [tokens], window after window
  std::vector<std::int32_t> targets;  // the token after each input
};

class WindowSampler {
 public:
  /// A batch has one window of each of the `lengths`. InputError when one of them, plus 1, exceeds the text.
  WindowSampler(std::string_view text, std::vector<std::int64_t> lengths, std::uint64_t seed);
  Batch batch(std::int64_t step) const;

 private:
  std::string_view text_;
  std::vector<std::int64_t> lengths_;
  std::uint64_t seed_;
};

}  // namespace openmsa::lm
