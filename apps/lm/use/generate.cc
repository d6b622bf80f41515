#include "lm/use/generate.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "io/error.h"
#include "lm/checkpoint/memory.h"
#include "lm/model/decoder.h"
#include "lm/model/kv_cache.h"
#include "lm/ops/parallel.h"

namespace openmsa::lm {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
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
    const Sequences chunk = one_chunk(length_, static_cast<std::int64_t>(tokens.size()));
    length_ += chunk.num_tokens();
    return decoder_.forward(model_.weights, cache_, Phase::kSparse, tokens, chunk, Decoder::Rows::kLast);
  }

 private:
  const Model& model_;
  Decoder decoder_;
  KvCache cache_;
  std::int64_t length_ = 0;
};

}  // namespace

std::int32_t sample(std::span<const float> logits, const SamplingOptions& options, Random& random) {
  const auto best = std::ranges::max_element(logits);
  const bool has_nan = std::ranges::any_of(logits, [](float logit) { return std::isnan(logit); });
  if (has_nan || std::isinf(*best)) throw io::InputError("the model's logits are NaN or infinite");
  if (options.temperature <= 0.0) return static_cast<std::int32_t>(best - logits.begin());

  std::vector<double> p(logits.size());
  std::ranges::transform(logits, p.begin(), [&](float logit) {
    return std::exp((static_cast<double>(logit) - *best) / options.temperature);
  });
  std::vector<std::int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto probability = [&](std::int32_t token) { return p[static_cast<std::size_t>(token)]; };
  std::ranges::stable_sort(order, std::greater{}, probability);

  const double wanted = options.top_p * std::accumulate(p.begin(), p.end(), 0.0);
  double mass = 0.0;
  std::size_t kept = 0;
  while (kept < order.size() && (kept == 0 || mass < wanted)) mass += probability(order[kept++]);

  double rest = random.uniform() * mass;
  for (std::size_t i = 0; i + 1 < kept; ++i) {
    rest -= probability(order[i]);
    if (rest < 0.0) return order[i];
  }
  return order[kept - 1];
}

Generation generate(const Model& model, std::span<const std::int32_t> prompt, const GenerationOptions& options,
                    const std::function<void(std::int32_t)>& on_token) {
  const ThreadLimit limit(options.num_threads);
  if (prompt.empty()) throw io::InputError("the prompt is empty");
  check_tokens(prompt, model.config.vocab_size);
  const std::int64_t capacity = static_cast<std::int64_t>(prompt.size()) + options.max_new_tokens;
  require_memory("the model with a cache of " + std::to_string(capacity) + " tokens",
                 model.weights.bytes() + KvCache::bytes(model.config, capacity));
  const auto start = Clock::now();
  Session session(model, capacity, options);
  const auto chunk = static_cast<std::size_t>(options.chunk);
  std::span<const float> logits;
  for (std::size_t done = 0; done < prompt.size(); done += chunk) {
    logits = session.advance(prompt.subspan(done, std::min(chunk, prompt.size() - done)));
  }
  const auto prefilled = Clock::now();

  Random random(options.seed);
  Generation result{};
  for (std::int64_t count = 1; count <= options.max_new_tokens; ++count) {
    const std::int32_t token = sample(logits, options.sampling, random);
    if (std::ranges::find(options.end_tokens, token) != options.end_tokens.end()) break;
    result.tokens.push_back(token);
    on_token(token);
    if (count < options.max_new_tokens) logits = session.advance(std::span(result.tokens).last(1));
  }
  result.prefill_seconds = seconds_between(start, prefilled);
  result.decode_seconds = seconds_between(prefilled, Clock::now());
  return result;
}

}  // namespace openmsa::lm
