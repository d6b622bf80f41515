#include "lm/training/trainer.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <stdexcept>

#include "io/error.h"
#include "lm/model/decoder.h"
#include "lm/ops/cross_entropy.h"

namespace openmsa::lm {
namespace {

TrainingState trainable(TrainingState state) {
  if (state.config.has_moe_layers()) {
    throw io::InputError("mlp_layer_types: training serves \"dense\" only, got a mixture-of-experts layer");
  }
  if (state.config.vocab_size < 256) {
    throw io::InputError("vocab_size: byte tokens need at least 256, got " + std::to_string(state.config.vocab_size));
  }
  return state;
}

/// A step that would make the weights NaN is not taken: the state stays that of the step before.
void require_finite(const StepFigures& figures) {
  if (std::isfinite(figures.loss) && std::isfinite(figures.grad_norm)) return;
  char text[128];
  std::snprintf(text, sizeof text, "training diverged: at step %lld the loss is %g, the norm of the gradient %g",
                static_cast<long long>(figures.step), figures.loss, figures.grad_norm);
  throw std::runtime_error(text);
}

}  // namespace

const char* phase_name(Phase phase) {
  switch (phase) {
    case Phase::kDense:
      return "dense";
    case Phase::kWarmup:
      return "warmup";
    case Phase::kSparse:
      return "sparse";
  }
  return "";
}

Trainer::Trainer(TrainingState state, std::string_view text, int num_threads, openmsa_backend backend)
    : state_(trainable(std::move(state))),
      gradients_(state_.weights.shared_layout()),
      sampler_(text, sequence_lengths(state_.options), state_.options.seed),
      sequences_(packed_sequences(sequence_lengths(state_.options))),
      attention_(state_.config,
                 {sequences_.batch(), sequences_.num_tokens(), std::ranges::max(sequence_lengths(state_.options))},
                 num_threads, backend),
      decoder_(state_.config, state_.weights.layout(), Decoder::Keep::kActivations) {}

Phase Trainer::phase(std::int64_t step) const {
  if (decoder_.sparse_layers().empty()) return Phase::kDense;
  return step <= state_.options.warmup_steps ? Phase::kWarmup : Phase::kSparse;
}

StepFigures Trainer::step(bool measure_recall) {
  const TrainingOptions& options = state_.options;
  const std::int64_t step = state_.step + 1;
  StepFigures figures{step, phase(step), 0.0, learning_rate(options, step), 0.0, {}, {}};

  const Batch batch = sampler_.batch(step);
  const auto logits = decoder_.forward(state_.weights, attention_, figures.phase, batch.inputs, sequences_);
  figures.loss = cross_entropy(logits, batch.targets);
  gradients_.set_zero();
  const double kl_loss =
      decoder_.backward(state_.weights, attention_, figures.phase, batch.inputs, sequences_, options.kl, gradients_);
  if (figures.phase != Phase::kDense) {
    figures.kl_loss = kl_loss;
    if (measure_recall) figures.recall = mean_recall(decoder_, attention_, sequences_);
  }
  figures.grad_norm = clip_gradients(options.clip, gradients_);
  require_finite(figures);
  AdamwOptions adamw;
  adamw.weight_decay = static_cast<float>(options.weight_decay);
  adamw_step(adamw, step, figures.lr, gradients_, state_.optimizer, state_.weights);
  state_.step = step;
  return figures;
}

}  // namespace openmsa::lm
