// MiniMax-M3 layers as Hugging Face transformers computes them, with the attention output in float64.
#pragma once

#include <string>

#include "io/safetensors.h"
#include "support/compare.h"

namespace openmsa::test {

/// m3_layer_small or m3_layer_d128.
io::SafetensorsFile golden_layer(const std::string& name);

/// The inputs in `file`, in bf16.
Layer read_layer(const io::SafetensorsFile& file);

/// msa_attention on them, or on an excerpt that begins at query `first` of the file, gave the selection, o and lse of
/// `file`.
void expect_golden(const io::SafetensorsFile& file, const Layer& layer, const TensorMap& results, Tolerance allowed,
                   std::int64_t first = 0);

}  // namespace openmsa::test
