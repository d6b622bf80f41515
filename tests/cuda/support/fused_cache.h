// K and V side by side in one cache, as serving systems keep them.
#pragma once

#include "cuda/support/device_memory.h"
#include "support/run.h"

namespace openmsa::test {

/// k_cache and v_cache as halves of rows of 2 * head_dim channels in device memory: [num_pages, page_size,
/// num_heads_kv, 2 * head_dim], or head-major [num_pages, num_heads_kv, page_size, 2 * head_dim].
class FusedCache {
 public:
  /// With the contents of k_cache and v_cache in `caches`.
  FusedCache(const TensorMap& caches, bool head_major);

  /// Points a call's k_cache and v_cache here.
  void bind(Tensors& tensors) const;
  /// k_cache and v_cache as they are now, each in memory of its own; expects the fences to be whole.
  TensorMap separate() const;

 private:
  Buffer rows_;  // shape, strides and contents of the start
  DeviceMemory memory_;
};

}  // namespace openmsa::test
