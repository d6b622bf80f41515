#include "lm/use/evaluate.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numbers>

#include "io/error.h"
#include "lm/checkpoint/memory.h"
#include "lm/ops/cross_entropy.h"
#include "lm/ops/parallel.h"

namespace openmsa::lm {
namespace {

/// Where the windows begin.
std::vector<std::size_t> window_offsets(std::size_t bytes, std::size_t seqlen, std::size_t max_bytes) {
  const std::size_t available = (bytes - 1) / seqlen;
  const std::size_t count = std::clamp<std::size_t>(max_bytes / seqlen, 1, available);
  std::vector<std::size_t> offsets;
  for (std::size_t i = 0; i < count; ++i) offsets.push_back(i * available / count * seqlen);
  return offsets;
}

/// Several windows side by side.
struct TokenBatch {
  std::vector<std::int32_t> inputs;
  std::vector<std::int32_t> targets;
  std::vector<std::int64_t> lengths;
  std::int64_t target_bytes = 0;

  void add(const tokenizer::Tokenizer& tokenizer, std::string_view window) {
    const auto tokens = tokenizer.encode(window);
    if (tokens.size() < 2) throw io::InputError("a window of the held-out text is a single token: no room to predict");
    inputs.insert(inputs.end(), tokens.begin(), tokens.end() - 1);
    targets.insert(targets.end(), tokens.begin() + 1, tokens.end());
    lengths.push_back(static_cast<std::int64_t>(tokens.size()) - 1);
    target_bytes += static_cast<std::int64_t>(window.size() - tokenizer.decode(tokens.front()).size());
  }
};

/// Sums over windows.
struct Sums {
  double loss = 0.0;
  std::int64_t bytes = 0;
  std::int64_t tokens = 0;
  double kl_loss = 0.0;
  Recall recall{0.0, 0.0};  // over batches: only the first window of each is measured
  Recall fp8_index_recall{0.0, 0.0};
  double batches = 0.0;
};

void add(const Recall& recall, Recall& sum) {
  sum.block += recall.block;
  sum.score += recall.score;
}

}  // namespace

Evaluation evaluate(const Model& model, const tokenizer::Tokenizer& tokenizer, const Text& text,
                    const EvaluationOptions& options,
                    const std::function<void(std::int64_t, std::int64_t)>& on_window) {
  const ThreadLimit limit(options.num_threads);
  const auto start = std::chrono::steady_clock::now();
  if (text.bytes.size() < 2) throw io::InputError("the held-out text has fewer than 2 bytes");
  const std::size_t seqlen =
      std::min(static_cast<std::size_t>(std::min(options.seqlen, options.max_bytes)), text.bytes.size() - 1);
  const auto offsets = window_offsets(text.bytes.size(), seqlen, static_cast<std::size_t>(options.max_bytes));
  const Phase phase = model.config.has_sparse_layers() && !options.dense ? Phase::kSparse : Phase::kDense;

  const auto length = static_cast<std::int64_t>(seqlen);
  const std::int64_t rows = std::min<std::int64_t>(options.batch, static_cast<std::int64_t>(offsets.size())) * length;
  require_memory("the model with logits of " + std::to_string(rows) + " tokens",
                 model.weights.bytes() + static_cast<std::uint64_t>(rows * model.config.vocab_size) * sizeof(float));
  PackedAttention attention(model.config, {options.batch, options.batch * length, length}, options.num_threads);
  Decoder decoder(model.config, model.weights.layout(), Decoder::Keep::kActivations);
  Sums sums;
  for (std::size_t done = 0; done < offsets.size();) {
    TokenBatch batch;
    const std::size_t count = std::min(static_cast<std::size_t>(options.batch), offsets.size() - done);
    for (std::size_t i = 0; i < count; ++i) {
      batch.add(tokenizer, std::string_view(text.bytes).substr(offsets[done + i], seqlen + 1));
    }
    check_tokens(batch.inputs, model.config.vocab_size);
    check_tokens(batch.targets, model.config.vocab_size);
    const Sequences sequences = packed_sequences(batch.lengths);
    const auto logits = decoder.forward(model.weights, attention, phase, batch.inputs, sequences);
    const auto weight = static_cast<double>(count);
    sums.loss += static_cast<double>(batch.targets.size()) * cross_entropy(logits, batch.targets);
    sums.bytes += batch.target_bytes;
    sums.tokens += static_cast<std::int64_t>(batch.targets.size());
    if (phase == Phase::kSparse) {
      sums.kl_loss += weight * mean_kl_loss(decoder, attention, phase, sequences);
      add(mean_recall(decoder, attention, sequences), sums.recall);
      if (options.fp8_index) {
        add(mean_recall(decoder, attention, sequences, IndexKeys::kFp8), sums.fp8_index_recall);
      }
      sums.batches += 1.0;
    }
    if (!std::isfinite(sums.loss) || !std::isfinite(sums.kl_loss)) {
      throw io::InputError("the model's loss is NaN or infinite");
    }
    done += count;
    on_window(static_cast<std::int64_t>(done), static_cast<std::int64_t>(offsets.size()));
  }

  const auto windows = static_cast<double>(offsets.size());
  Evaluation result{};
  result.bits_per_byte = sums.loss / static_cast<double>(sums.bytes) / std::numbers::ln2;
  result.bytes = sums.bytes;
  result.tokens = sums.tokens;
  result.files = static_cast<std::int64_t>(text.files.size());
  if (phase == Phase::kSparse) {
    result.kl_loss = sums.kl_loss / windows;
    const auto mean = [&](const Recall& sum) { return Recall{sum.block / sums.batches, sum.score / sums.batches}; };
    result.recall = mean(sums.recall);
    if (options.fp8_index) result.fp8_index_recall = mean(sums.fp8_index_recall);
  }
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace openmsa::lm
