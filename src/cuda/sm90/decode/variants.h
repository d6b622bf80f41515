// The kernels of a decode step that are compiled.
#pragma once

#include "cuda/common/variant.h"
#include "cuda/sm90/decode/kernels.h"

namespace openmsa::cuda::sm90::decode {

struct DecodeKey {
  openmsa_dtype dtype;   // of the queries
  openmsa_dtype cached;  // of the keys
  int dim;
  bool operator==(const DecodeKey&) const = default;
};
using SelectVariant = Variant<DecodeKey, SelectFunction>;
using AttendVariant = Variant<DecodeKey, AttendFunction>;

template <openmsa_dtype kDtype, openmsa_dtype kCached, int kDim>
inline constexpr SelectVariant kSelect = {{kDtype, kCached, kDim}, &launch_select<kDtype, kCached, kDim>};
template <openmsa_dtype kDtype, openmsa_dtype kCached, int kDim>
inline constexpr AttendVariant kAttend = {{kDtype, kCached, kDim}, &launch_attend<kDtype, kCached, kDim>};

inline constexpr openmsa_dtype kBf16 = OPENMSA_BFLOAT16, kFp16 = OPENMSA_FLOAT16, kE4m3 = OPENMSA_FLOAT8_E4M3;

inline constexpr SelectVariant kSelectVariants[] = {
    kSelect<kBf16, kBf16, 64>, kSelect<kBf16, kBf16, 128>, kSelect<kBf16, kE4m3, 64>, kSelect<kBf16, kE4m3, 128>,  //
    kSelect<kFp16, kFp16, 64>, kSelect<kFp16, kFp16, 128>, kSelect<kFp16, kE4m3, 64>, kSelect<kFp16, kE4m3, 128>,
};
inline constexpr AttendVariant kAttendVariants[] = {
    kAttend<kBf16, kBf16, 64>, kAttend<kBf16, kBf16, 128>, kAttend<kBf16, kE4m3, 64>, kAttend<kBf16, kE4m3, 128>,  //
    kAttend<kFp16, kFp16, 64>, kAttend<kFp16, kFp16, 128>, kAttend<kFp16, kE4m3, 64>, kAttend<kFp16, kE4m3, 128>,
};

}  // namespace openmsa::cuda::sm90::decode
