#include "lm/generate.h"

#include <algorithm>
#include <chrono>

#include "io/error.h"
#include "lm/decoder.h"
#include "lm/kv_cache.h"
#include "lm/threads.h"

namespace openmsa::lm {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

void check_prompt(std::span<const std::int32_t> prompt, std::int32_t vocab_size) {
  if (prompt.empty()) throw io::InputError("the prompt is empty");
  const std::int32_t largest = *std::ranges::max_element(prompt);
  if (largest >= vocab_size) {
    throw io::InputError("prompt: expected tokens below vocab_size = " + std::to_string(vocab_size) + ", got " +
                         std::to_string(largest));
  }
}

/// One sequence that grows by every call.
class Session {
 public:
  Session(const Model& model, std::int64_t capacity, const GenerationOptions& options)
      : model_(model),
        decoder_(model.config, model.weights.layout(), Decoder::Keep::kNothing),
        cache_(model.config, capacity, options.chunk, options.num_threads, options.seed) {}

  /// Logits of the token after `tokens`.
  std::span<const float> advance(std::span<const std::int32_t> tokens) {
    const auto count = static_cast<std::int64_t>(tokens.size());
    const auto logits = decoder_.forward(model_.weights, cache_, Phase::kSparse, tokens, one_chunk(length_, count));
    length_ += count;
    return logits.last(static_cast<std::size_t>(model_.config.vocab_size));
  }

 private:
  const Model& model_;
  Decoder decoder_;
  KvCache cache_;
  std::int64_t length_ = 0;
};

}  // namespace

Generation generate(const Model& model, std::span<const std::int32_t> prompt, const GenerationOptions& options,
                    const std::function<void(std::int64_t)>& on_token) {
  const ThreadLimit limit(options.num_threads);
  check_prompt(prompt, model.config.vocab_size);
  const auto start = Clock::now();
  Session session(model, static_cast<std::int64_t>(prompt.size()) + options.max_new_tokens, options);
  const auto chunk = static_cast<std::size_t>(options.chunk);
  std::span<const float> logits;
  for (std::size_t done = 0; done < prompt.size(); done += chunk) {
    logits = session.advance(prompt.subspan(done, std::min(chunk, prompt.size() - done)));
  }
  const auto prefilled = Clock::now();

  Random random(options.seed);
  Generation result{};
  for (std::int64_t count = 1; count <= options.max_new_tokens; ++count) {
    result.tokens.push_back(sample(logits, options.sampling, random));
    if (count < options.max_new_tokens) logits = session.advance(std::span(result.tokens).last(1));
    on_token(count);
  }
  result.prefill_seconds = seconds_between(start, prefilled);
  result.decode_seconds = seconds_between(prefilled, Clock::now());
  return result;
}

}  // namespace openmsa::lm
