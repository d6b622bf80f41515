// The KL kernels that are compiled.
#pragma once

#include "cuda/common/variant.h"
#include "cuda/sm90/training/kl/kernels.h"

namespace openmsa::cuda::sm90::training::kl {

struct IndexLseKey {
  openmsa_dtype dtype;
  int index_dim;
  bool operator==(const IndexLseKey&) const = default;
};
using IndexLseVariant = Variant<IndexLseKey, IndexLseFunction>;

struct KlKey {
  openmsa_dtype dtype;
  int head_dim;
  int index_dim;
  bool operator==(const KlKey&) const = default;
};
using KlVariant = Variant<KlKey, KlFunction>;

template <openmsa_dtype kDtype, int kIndexDim>
inline constexpr IndexLseVariant kIndexLse = {{kDtype, kIndexDim}, &launch_index_lse<kDtype, kIndexDim>};
template <openmsa_dtype kDtype, int kDim, int kIndexDim>
inline constexpr KlVariant kKl = {{kDtype, kDim, kIndexDim}, &launch_kl<kDtype, kDim, kIndexDim>};

inline constexpr IndexLseVariant kIndexLseVariants[] = {
    kIndexLse<OPENMSA_BFLOAT16, 64>,
    kIndexLse<OPENMSA_BFLOAT16, 128>,  //
    kIndexLse<OPENMSA_FLOAT16, 64>,
    kIndexLse<OPENMSA_FLOAT16, 128>,
};
inline constexpr KlVariant kKlVariants[] = {
    kKl<OPENMSA_BFLOAT16, 64, 64>,  kKl<OPENMSA_BFLOAT16, 64, 128>,   //
    kKl<OPENMSA_BFLOAT16, 128, 64>, kKl<OPENMSA_BFLOAT16, 128, 128>,  //
    kKl<OPENMSA_FLOAT16, 64, 64>,   kKl<OPENMSA_FLOAT16, 64, 128>,    //
    kKl<OPENMSA_FLOAT16, 128, 64>,  kKl<OPENMSA_FLOAT16, 128, 128>,
};

}  // namespace openmsa::cuda::sm90::training::kl
