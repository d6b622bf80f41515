// Helpers of the language model's tests.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "lm/model/decoder.h"

namespace openmsa::test {

std::vector<float> random_floats(std::size_t count, std::uint64_t seed, float deviation = 1.0f);

/// sum_i x[i] y[i]: with fixed random y, a loss whose gradient is y.
double dot(std::span<const float> x, std::span<const float> y);

/// `gradient` is that of loss() with respect to `values`: central differences, element by element (evenly spaced ones
/// of many), within 1 % of the largest element.
void expect_gradient(const std::string& name, std::span<float> values, std::span<const float> gradient,
                     const std::function<double()>& loss);

/// Two layers, the first dense and the second sparse; 4 query heads of 8 channels in 2 groups; kv_blocks of 8 tokens,
/// of which 2 are kept; 32 tokens in the vocabulary.
lm::ModelConfig tiny_config();

/// The same with experts in the second layer, 2 of them for a token.
lm::ModelConfig tiny_moe_config(int num_experts);

/// Weights of all parameters, norms included, large enough for gradients to be seen.
lm::Parameters random_weights(const lm::ModelConfig& config, std::uint64_t seed);

/// All values, matrix after matrix.
std::vector<float> values_of(const lm::Weights& weights);

std::vector<std::int32_t> random_tokens(std::size_t count, int vocab_size, std::uint64_t seed);

}  // namespace openmsa::test
