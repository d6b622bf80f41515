// The portable kernels of training that multiply tiles.
#pragma once

#include "cuda/generic/training/tile_kernels.h"

namespace openmsa::cuda::sm80::training {

extern const generic::training::TileKernels kTileKernels;

}  // namespace openmsa::cuda::sm80::training
