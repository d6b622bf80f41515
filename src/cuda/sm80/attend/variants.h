// The attention kernels that are compiled.
#pragma once

#include "cuda/common/variant.h"
#include "cuda/sm80/attend/kernels.h"

namespace openmsa::cuda::sm80::attend {

struct AttendKey {
  openmsa_dtype dtype;   // of the queries
  openmsa_dtype cached;  // of the keys
  int dim;
  bool operator==(const AttendKey&) const = default;
};
struct AttendFunctions {
  ScheduledFunction* scheduled;
  DenseFunction* dense;
  DecodeFunction* decode;
};
using AttendVariant = Variant<AttendKey, const AttendFunctions>;

template <openmsa_dtype kDtype, openmsa_dtype kCached, int kDim>
inline constexpr AttendFunctions kFunctions = {&launch_scheduled<kDtype, kCached, kDim>,
                                               &launch_dense<kDtype, kCached, kDim>,
                                               &launch_decode<kDtype, kCached, kDim>};
template <openmsa_dtype kDtype, openmsa_dtype kCached, int kDim>
inline constexpr AttendVariant kAttend = {{kDtype, kCached, kDim}, &kFunctions<kDtype, kCached, kDim>};

inline constexpr openmsa_dtype kBf16 = OPENMSA_BFLOAT16, kFp16 = OPENMSA_FLOAT16, kE4m3 = OPENMSA_FLOAT8_E4M3;

inline constexpr AttendVariant kAttendVariants[] = {
    kAttend<kBf16, kBf16, 64>, kAttend<kBf16, kBf16, 128>, kAttend<kBf16, kE4m3, 64>, kAttend<kBf16, kE4m3, 128>,  //
    kAttend<kFp16, kFp16, 64>, kAttend<kFp16, kFp16, 128>, kAttend<kFp16, kE4m3, 64>, kAttend<kFp16, kE4m3, 128>,
};

}  // namespace openmsa::cuda::sm80::attend
