// A paged layer with fp8 keys.
#pragma once

#include "support/run.h"

namespace openmsa::test {

inline LayerShape fp8_shape(Scales scales) {
  return {.page_size = 16,
          .seqlens_q = {20, 1, 0, 1},
          .seqlens_k = {70, 33, 9, 1},
          .kv_dtype = OPENMSA_FLOAT8_E4M3,
          .index_dtype = OPENMSA_FLOAT8_E4M3,
          .scales = scales};
}

}  // namespace openmsa::test
