// K and V side by side in one cache, as serving systems keep them.
#pragma once

#include "support/run.h"

namespace openmsa::test {

/// Rows of k_cache and v_cache in one buffer: [num_pages, page_size, num_heads_kv, 2 * head_dim], or in memory
/// head-major, [num_pages, num_heads_kv, page_size, 2 * head_dim].
Buffer fused_rows(const Buffer& k_cache, const Buffer& v_cache, bool head_major);

/// Points a call's k_cache and v_cache at the halves of `rows`, whose memory is at `data`.
void bind_halves(Tensors& tensors, const Buffer& rows, void* data);

}  // namespace openmsa::test
