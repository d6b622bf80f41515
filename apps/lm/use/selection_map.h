// Which kv_blocks each layer and group selects, for a picture.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

#include "lm/checkpoint/checkpoint.h"
#include "tokenizer/tokenizer.h"

namespace openmsa::lm {

/// The selection of at most 128 evenly spaced queries of one window:
///   {"block_size", "topk", "seqlen", "text", "layers": [{"layer", "groups": [{"rows": [{"query", "blocks":
///   [...]}]}]}]}
/// InputError for a model without sparse layers.
nlohmann::ordered_json selection_map(const Model& model, const tokenizer::Tokenizer& tokenizer, std::string_view window,
                                     int num_threads);

}  // namespace openmsa::lm
