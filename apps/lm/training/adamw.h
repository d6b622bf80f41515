// AdamW (Loshchilov, Hutter 2019) and gradient clipping over the flat parameter array.
#pragma once

#include <cstdint>

#include "lm/model/parameters.h"

namespace openmsa::lm {

struct AdamwOptions {
  float beta1 = 0.9f;
  float beta2 = 0.95f;
  float eps = 1e-8f;
  float weight_decay = 0.1f;  // of matrices; norm weights are not decayed
};

/// First and second moments of every parameter.
struct AdamwState {
  explicit AdamwState(const std::shared_ptr<const ParameterLayout>& layout) : m(layout), v(layout) {}
  Parameters m;
  Parameters v;
};

/// Step number `step`, from 1:
///   m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2
///   w -= lr * (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + eps) + weight_decay w)
void adamw_step(const AdamwOptions& options, std::int64_t step, double lr, const Parameters& gradients,
                AdamwState& state, Parameters& weights);

/// Scales the gradients down to a Euclidean norm of at most `max_norm`; returns the norm before.
double clip_gradients(double max_norm, Parameters& gradients);

}  // namespace openmsa::lm
