// What counts as right when a backend is compared with the reference.
#pragma once

#include <cstddef>
#include <cstdint>
#include <openmsa/openmsa.hpp>
#include <vector>

namespace openmsa::cli {

/// The elements of a contiguous tensor of floats.
std::vector<double> to_doubles(const openmsa_tensor& tensor);

/// A row of topk_indices is right when the forced kv_blocks are in it and no other kv_block beats a chosen one.
bool is_best(const Config& config, const float* scores, std::int64_t num_blocks, const std::int32_t* chosen);

/// |o - reference| / |reference| over rows that are added one by one.
class OutputError {
 public:
  template <class T>
  void add(const std::vector<double>& got, const std::vector<T>& expected) {
    for (std::size_t i = 0; i < got.size(); ++i) {
      error_ += (got[i] - expected[i]) * (got[i] - expected[i]);
      norm_ += expected[i] * expected[i];
    }
  }
  /// Throws std::runtime_error, with the text of `what` attention, where it is more than `dtype` allows, or NaN.
  void check(const char* what, openmsa_dtype dtype) const;

 private:
  double error_ = 0;
  double norm_ = 0;
};

}  // namespace openmsa::cli
