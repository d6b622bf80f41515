// The kernels of a prefill's index branch that are compiled.
#pragma once

#include "cuda/common/variant.h"
#include "cuda/sm90/prefill/select/kernels.h"

namespace openmsa::cuda::sm90::prefill {

struct SelectKey {
  openmsa_dtype dtype;   // of index_q
  openmsa_dtype cached;  // of index_k
  int dim;
  int block_size;
  int capacity;  // of the lists; kNoList: block scores
  bool operator==(const SelectKey&) const = default;
};
using SelectVariant = Variant<SelectKey, SelectFunction>;

template <openmsa_dtype kDtype, openmsa_dtype kCached, int kDim, int kBlock, int kCapacity>
inline constexpr SelectVariant kSelect = {{kDtype, kCached, kDim, kBlock, kCapacity},
                                          &launch_select<kDtype, kCached, kDim, kBlock, kCapacity>};

inline constexpr openmsa_dtype kBf16 = OPENMSA_BFLOAT16, kFp16 = OPENMSA_FLOAT16, kE4m3 = OPENMSA_FLOAT8_E4M3;

inline constexpr SelectVariant kSelectVariants[] = {
    kSelect<kBf16, kBf16, 64, 64, 0>,   kSelect<kBf16, kBf16, 64, 64, 16>,   kSelect<kBf16, kBf16, 64, 64, 64>,    //
    kSelect<kBf16, kBf16, 64, 128, 0>,  kSelect<kBf16, kBf16, 64, 128, 16>,  kSelect<kBf16, kBf16, 64, 128, 64>,   //
    kSelect<kBf16, kBf16, 128, 64, 0>,  kSelect<kBf16, kBf16, 128, 64, 16>,  kSelect<kBf16, kBf16, 128, 64, 64>,   //
    kSelect<kBf16, kBf16, 128, 128, 0>, kSelect<kBf16, kBf16, 128, 128, 16>, kSelect<kBf16, kBf16, 128, 128, 64>,  //
    kSelect<kBf16, kE4m3, 64, 64, 0>,   kSelect<kBf16, kE4m3, 64, 64, 16>,   kSelect<kBf16, kE4m3, 64, 64, 64>,    //
    kSelect<kBf16, kE4m3, 64, 128, 0>,  kSelect<kBf16, kE4m3, 64, 128, 16>,  kSelect<kBf16, kE4m3, 64, 128, 64>,   //
    kSelect<kBf16, kE4m3, 128, 64, 0>,  kSelect<kBf16, kE4m3, 128, 64, 16>,  kSelect<kBf16, kE4m3, 128, 64, 64>,   //
    kSelect<kBf16, kE4m3, 128, 128, 0>, kSelect<kBf16, kE4m3, 128, 128, 16>, kSelect<kBf16, kE4m3, 128, 128, 64>,  //
    kSelect<kFp16, kFp16, 64, 64, 0>,   kSelect<kFp16, kFp16, 64, 64, 16>,   kSelect<kFp16, kFp16, 64, 64, 64>,    //
    kSelect<kFp16, kFp16, 64, 128, 0>,  kSelect<kFp16, kFp16, 64, 128, 16>,  kSelect<kFp16, kFp16, 64, 128, 64>,   //
    kSelect<kFp16, kFp16, 128, 64, 0>,  kSelect<kFp16, kFp16, 128, 64, 16>,  kSelect<kFp16, kFp16, 128, 64, 64>,   //
    kSelect<kFp16, kFp16, 128, 128, 0>, kSelect<kFp16, kFp16, 128, 128, 16>, kSelect<kFp16, kFp16, 128, 128, 64>,  //
    kSelect<kFp16, kE4m3, 64, 64, 0>,   kSelect<kFp16, kE4m3, 64, 64, 16>,   kSelect<kFp16, kE4m3, 64, 64, 64>,    //
    kSelect<kFp16, kE4m3, 64, 128, 0>,  kSelect<kFp16, kE4m3, 64, 128, 16>,  kSelect<kFp16, kE4m3, 64, 128, 64>,   //
    kSelect<kFp16, kE4m3, 128, 64, 0>,  kSelect<kFp16, kE4m3, 128, 64, 16>,  kSelect<kFp16, kE4m3, 128, 64, 64>,   //
    kSelect<kFp16, kE4m3, 128, 128, 0>, kSelect<kFp16, kE4m3, 128, 128, 16>, kSelect<kFp16, kE4m3, 128, 128, 64>,
};

}  // namespace openmsa::cuda::sm90::prefill
