// One optimisation step after the other.
#pragma once

#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "lm/model/decoder.h"
#include "lm/training/training_state.h"
#include "lm/training/window_sampler.h"

namespace openmsa::lm {

/// Figures of one step.
struct StepFigures {
  std::int64_t step;  // from 1
  Phase phase;
  double loss;  // nats per byte, before the step
  double lr;
  double grad_norm;               // before clipping
  std::optional<double> kl_loss;  // mean over the sparse layers
  std::optional<Recall> recall;   // means over the sparse layers, of the batch's first sequence
};

/// "dense" for a model without sparse layers, else "warmup" or "sparse".
const char* phase_name(Phase phase);

class Trainer {
 public:
  /// `text` must outlive the trainer. InputError: a model or text that cannot be trained, for example one with
  /// mixture-of-experts layers.
  Trainer(TrainingState state, std::string_view text, int num_threads, openmsa_backend backend = OPENMSA_BACKEND_CPU);

  /// PackedAttention::set_selection for all sparse layers.
  void set_selection(std::vector<std::int32_t> topk_indices) { attention_.set_selection(std::move(topk_indices)); }

  /// std::runtime_error, and the state stays as it was, when the loss or the gradient is NaN or infinite.
  StepFigures step(bool measure_recall);
  const TrainingState& state() const { return state_; }

 private:
  Phase phase(std::int64_t step) const;

  TrainingState state_;
  Parameters gradients_;
  WindowSampler sampler_;
  Sequences sequences_;
  PackedAttention attention_;
  Decoder decoder_;
};

}  // namespace openmsa::lm
