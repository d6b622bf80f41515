// Whether a backend has selected the right kv_blocks.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "judge/layer.h"

namespace openmsa::judge {

/// The selection of one query and KV head as it was written, -1 included.
std::vector<std::int64_t> selection_row(const Buffer& topk_indices, std::int64_t head, std::int64_t row);

/// What is wrong with a row of topk_indices; "" when it is right: ascending, padded with -1, as many kv_blocks as the
/// reference's, and others only where their scores lie closer together than `allowed` times the largest of the row.
/// `scores` are the reference's, of the kv_blocks that the query sees.
std::string selection_fault(std::span<const std::int64_t> got, std::span<const std::int64_t> reference,
                            std::span<const double> scores, double allowed);

/// The faults of all rows of a layer's selection, each with its head and row. `block_scores` are the reference's.
std::vector<std::string> selection_faults(const Layer& layer, const Buffer& topk_indices, const Buffer& reference,
                                          const Buffer& block_scores);

}  // namespace openmsa::judge
