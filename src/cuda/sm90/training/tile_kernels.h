// The kernels of training that multiply tiles, on Hopper.
#pragma once

#include "cuda/generic/training/tile_kernels.h"

namespace openmsa::cuda::sm90::training {

extern const generic::training::TileKernels kTileKernels;

}  // namespace openmsa::cuda::sm90::training
