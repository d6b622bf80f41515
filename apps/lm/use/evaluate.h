// How well a model predicts held-out text, and how well its index branches select.
#pragma once

#include <functional>
#include <optional>

#include "lm/checkpoint/checkpoint.h"
#include "lm/model/decoder.h"
#include "lm/training/corpus.h"
#include "tokenizer/tokenizer.h"

namespace openmsa::lm {

struct EvaluationOptions {
  std::int64_t seqlen = 2048;  // bytes per window
  std::int64_t batch = 2;      // windows at once
  std::int64_t max_bytes = 1 << 20;
  bool dense = false;      // sparse layers attend densely
  bool fp8_index = false;  // measure the selection with fp8 index keys too
  int num_threads = 0;
};

struct Evaluation {
  double bits_per_byte;
  std::int64_t bytes;  // that were predicted
  std::int64_t tokens;
  std::int64_t files;  // of the held-out part
  double seconds;
  std::optional<double> kl_loss;  // means over windows and sparse layers; only where those attend sparsely
  std::optional<Recall> recall;
  std::optional<Recall> fp8_index_recall;  // of what would be selected with fp8 index keys; when asked for
};

/// Evenly spaced windows of the text, seqlen bytes and one each, that predict at most max_bytes together. Where the text
/// or max_bytes is shorter than seqlen there is one window of so much. The first token of a window is given, the others are predicted. InputError when the
/// text has fewer than 2 bytes, a window fewer than 2 tokens, or a figure is NaN or infinite.
/// `on_window(done, total)` is called after every batch.
Evaluation evaluate(const Model& model, const tokenizer::Tokenizer& tokenizer, const Text& text,
                    const EvaluationOptions& options, const std::function<void(std::int64_t, std::int64_t)>& on_window);

}  // namespace openmsa::lm
