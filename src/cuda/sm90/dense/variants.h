// The kernels of dense attention that are compiled.
#pragma once

#include "cuda/common/variant.h"
#include "cuda/sm90/dense/kernels.h"

namespace openmsa::cuda::sm90::dense {

struct DecodeKey {
  openmsa_dtype dtype;   // of the queries
  openmsa_dtype cached;  // of the keys
  int dim;
  bool operator==(const DecodeKey&) const = default;
};
using PromptVariant = Variant<DtypeAndDim, PromptFunction>;
using DecodeVariant = Variant<DecodeKey, DecodeFunction>;

template <openmsa_dtype kDtype, int kDim>
inline constexpr PromptVariant kPrompt = {{kDtype, kDim}, &launch_prompt<kDtype, kDim>};
template <openmsa_dtype kDtype, openmsa_dtype kCached, int kDim>
inline constexpr DecodeVariant kDecode = {{kDtype, kCached, kDim}, &launch_decode<kDtype, kCached, kDim>};

inline constexpr openmsa_dtype kBf16 = OPENMSA_BFLOAT16, kFp16 = OPENMSA_FLOAT16, kE4m3 = OPENMSA_FLOAT8_E4M3;

inline constexpr PromptVariant kPromptVariants[] = {kPrompt<kBf16, 64>, kPrompt<kBf16, 128>, kPrompt<kFp16, 64>,
                                                    kPrompt<kFp16, 128>};
inline constexpr DecodeVariant kDecodeVariants[] = {
    kDecode<kBf16, kBf16, 64>, kDecode<kBf16, kBf16, 128>, kDecode<kBf16, kE4m3, 64>, kDecode<kBf16, kE4m3, 128>,  //
    kDecode<kFp16, kFp16, 64>, kDecode<kFp16, kFp16, 128>, kDecode<kFp16, kE4m3, 64>, kDecode<kFp16, kE4m3, 128>,
};

}  // namespace openmsa::cuda::sm90::dense
