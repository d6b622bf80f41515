// The kernels of the index branch that are compiled.
#pragma once

#include "cuda/common/variant.h"
#include "cuda/sm80/select/kernels.h"

namespace openmsa::cuda::sm80::select {

struct SelectKey {
  openmsa_dtype cached;  // of index_k: e4m3 meets queries of any type, others those of their own
  int dim;
  bool operator==(const SelectKey&) const = default;
};
using PromptVariant = Variant<SelectKey, PromptFunction>;
using DecodeVariant = Variant<SelectKey, DecodeFunction>;

template <openmsa_dtype kCached, int kDim>
inline constexpr PromptVariant kPrompt = {{kCached, kDim}, &launch_prompt<kCached, kDim>};
template <openmsa_dtype kCached, int kDim>
inline constexpr DecodeVariant kDecode = {{kCached, kDim}, &launch_decode<kCached, kDim>};

inline constexpr openmsa_dtype kBf16 = OPENMSA_BFLOAT16, kFp16 = OPENMSA_FLOAT16, kE4m3 = OPENMSA_FLOAT8_E4M3;

inline constexpr PromptVariant kPromptVariants[] = {kPrompt<kBf16, 64>,  kPrompt<kBf16, 128>, kPrompt<kFp16, 64>,
                                                    kPrompt<kFp16, 128>, kPrompt<kE4m3, 64>,  kPrompt<kE4m3, 128>};
inline constexpr DecodeVariant kDecodeVariants[] = {kDecode<kBf16, 64>,  kDecode<kBf16, 128>, kDecode<kFp16, 64>,
                                                    kDecode<kFp16, 128>, kDecode<kE4m3, 64>,  kDecode<kE4m3, 128>};

}  // namespace openmsa::cuda::sm80::select
