// The attention kernels of a prefill that are compiled.
#pragma once

#include "cuda/common/variant.h"
#include "cuda/sm90/prefill/kernels.h"

namespace openmsa::cuda::sm90::prefill {

struct AttendKey {
  openmsa_dtype dtype;   // of q
  openmsa_dtype cached;  // of k and v
  int dim;
  int block_size;
  bool operator==(const AttendKey&) const = default;
};
using AttendVariant = Variant<AttendKey, AttendFunction>;

template <openmsa_dtype kDtype, openmsa_dtype kCached, int kDim, int kBlock>
inline constexpr AttendVariant kAttend = {{kDtype, kCached, kDim, kBlock},
                                          &launch_attend<kDtype, kCached, kDim, kBlock>};

inline constexpr AttendVariant kAttendVariants[] = {
    kAttend<OPENMSA_BFLOAT16, OPENMSA_BFLOAT16, 64, 64>,     kAttend<OPENMSA_BFLOAT16, OPENMSA_BFLOAT16, 64, 128>,
    kAttend<OPENMSA_BFLOAT16, OPENMSA_BFLOAT16, 128, 64>,    kAttend<OPENMSA_BFLOAT16, OPENMSA_BFLOAT16, 128, 128>,
    kAttend<OPENMSA_BFLOAT16, OPENMSA_FLOAT8_E4M3, 64, 64>,  kAttend<OPENMSA_BFLOAT16, OPENMSA_FLOAT8_E4M3, 64, 128>,
    kAttend<OPENMSA_BFLOAT16, OPENMSA_FLOAT8_E4M3, 128, 64>, kAttend<OPENMSA_BFLOAT16, OPENMSA_FLOAT8_E4M3, 128, 128>,
    kAttend<OPENMSA_FLOAT16, OPENMSA_FLOAT16, 64, 64>,       kAttend<OPENMSA_FLOAT16, OPENMSA_FLOAT16, 64, 128>,
    kAttend<OPENMSA_FLOAT16, OPENMSA_FLOAT16, 128, 64>,      kAttend<OPENMSA_FLOAT16, OPENMSA_FLOAT16, 128, 128>,
    kAttend<OPENMSA_FLOAT16, OPENMSA_FLOAT8_E4M3, 64, 64>,   kAttend<OPENMSA_FLOAT16, OPENMSA_FLOAT8_E4M3, 64, 128>,
    kAttend<OPENMSA_FLOAT16, OPENMSA_FLOAT8_E4M3, 128, 64>,  kAttend<OPENMSA_FLOAT16, OPENMSA_FLOAT8_E4M3, 128, 128>,
};

}  // namespace openmsa::cuda::sm90::prefill
