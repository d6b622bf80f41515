// New tokens in paged caches, judged bit by bit.
#pragma once

#include "support/compare.h"

namespace openmsa::test {

/// What append_kv writes, as it is in the layer: caches, and scales where they are per token.
TensorMap stored(const Layer& layer);

/// `before` after append_kv on the layer's backend, and on its quick_judge.
TensorMap appended(const Layer& layer, TensorMap before);
TensorMap judged_append(const Layer& layer, TensorMap before);

/// Both are the same, and every tensor has changed.
void expect_appended(const Layer& layer, const TensorMap& before);

}  // namespace openmsa::test
