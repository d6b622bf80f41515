#include "lm/training/window_sampler.h"

#include <algorithm>
#include <string>
#include <utility>

#include "io/error.h"
#include "lm/ops/random.h"
#include "tokenizer/tokenizer.h"

namespace openmsa::lm {
namespace {

/// Appends the window of `seqlen` inputs at `begin`; the text must hold seqlen + 1 bytes from there.
void append_window(std::string_view text, std::size_t begin, std::size_t seqlen, Batch& batch) {
  const auto tokens = tokenizer::ByteTokenizer().encode(text.substr(begin, seqlen + 1));
  batch.inputs.insert(batch.inputs.end(), tokens.begin(), tokens.end() - 1);
  batch.targets.insert(batch.targets.end(), tokens.begin() + 1, tokens.end());
}

}  // namespace

WindowSampler::WindowSampler(std::string_view text, std::vector<std::int64_t> lengths, std::uint64_t seed)
    : text_(text), lengths_(std::move(lengths)), seed_(seed) {
  const auto longest = static_cast<std::size_t>(std::ranges::max(lengths_));
  if (text.size() <= longest) {
    throw io::InputError("the training text has " + std::to_string(text.size()) + " bytes, a window needs " +
                         std::to_string(longest + 1));
  }
}

Batch WindowSampler::batch(std::int64_t step) const {
  Random random(hash(seed_, "step " + std::to_string(step)));
  Batch batch;
  for (const std::int64_t length : lengths_) {
    const auto seqlen = static_cast<std::size_t>(length);
    append_window(text_, random.below(text_.size() - seqlen), seqlen, batch);
  }
  return batch;
}

}  // namespace openmsa::lm
