// The named parameters of a decoder in one flat array; gradients and optimizer moments use the same layout.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lm/model/config.h"

namespace openmsa::lm {

/// A parameter's place in ParameterLayout::parameters(), looked up once by name.
using ParameterIndex = std::size_t;

/// Where one parameter stands in the flat array.
struct Parameter {
  std::string name;  // as in transformers: "model.layers.0.self_attn.q_proj.weight"
  std::vector<std::int64_t> shape;
  std::size_t offset;  // a multiple of 16 floats; the gaps hold zeros
  std::size_t size;

  bool is_index() const;                               // belongs to the index branch
  bool is_matrix() const { return shape.size() > 1; }  // norm weights and biases are vectors
};

class ParameterLayout {
 public:
  explicit ParameterLayout(const ModelConfig& config);
  const std::vector<Parameter>& parameters() const { return parameters_; }
  const Parameter& at(const std::string& name) const { return parameters_[index_of(name)]; }
  ParameterIndex index_of(const std::string& name) const;
  std::size_t size() const { return size_; }  // floats of the array
  std::size_t num_parameters() const;         // without the gaps

 private:
  void add(std::string name, std::vector<std::int64_t> shape);
  void add_attention(const std::string& prefix, const ModelConfig& config, AttentionKind kind);
  void add_mlp(const std::string& prefix, const ModelConfig& config, MlpKind kind);

  std::vector<Parameter> parameters_;
  std::size_t size_ = 0;
};

/// One value per parameter: weights, gradients or moments.
class Parameters {
 public:
  explicit Parameters(std::shared_ptr<const ParameterLayout> layout);
  const ParameterLayout& layout() const { return *layout_; }
  const std::shared_ptr<const ParameterLayout>& shared_layout() const { return layout_; }

  float* operator[](ParameterIndex index) { return of(layout_->parameters()[index]).data(); }
  const float* operator[](ParameterIndex index) const { return of(layout_->parameters()[index]).data(); }
  std::span<float> of(const Parameter& parameter) { return {values_.data() + parameter.offset, parameter.size}; }
  std::span<const float> of(const Parameter& parameter) const {
    return {values_.data() + parameter.offset, parameter.size};
  }
  std::span<float> values() { return values_; }
  std::span<const float> values() const { return values_; }
  void set_zero();

 private:
  std::shared_ptr<const ParameterLayout> layout_;
  std::vector<float> values_;
};

/// Fresh weights: norms and biases 0, matrices normal with config.initializer_range, those that write to the residual
/// stream divided by sqrt(2 * layers). Each parameter depends only on (seed, its name), so that two models share the
/// values of every parameter that both have.
void initialize(const ModelConfig& config, std::uint64_t seed, Parameters& weights);
void initialize(const ModelConfig& config, std::uint64_t seed, const Parameter& parameter, Parameters& weights);

}  // namespace openmsa::lm
