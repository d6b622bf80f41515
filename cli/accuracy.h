// What counts as right when a backend is compared with the reference.
#pragma once

#include <cstdint>
#include <openmsa/openmsa.hpp>

namespace openmsa::cli {

struct Tolerance {
  double output;  // |o - reference| / |reference|
  double score;   // by how much a chosen kv_block may score below another, over the row's largest magnitude
};

Tolerance tolerance(openmsa_dtype dtype);

/// A row of topk_indices is right when the forced kv_blocks are in it and no other kv_block beats a chosen one.
bool is_best(const Config& config, const float* scores, std::int64_t num_blocks, const std::int32_t* chosen);

}  // namespace openmsa::cli
