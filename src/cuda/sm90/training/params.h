// Training on Hopper: what its kernels add to the parameters of generic/training.
#pragma once

#include "cuda/generic/training/kl/params.h"

namespace openmsa::cuda::sm90::training {

using namespace generic::training;  // NOLINT: the same words for both

inline constexpr int kTileRows = 64;  // query rows of a tile

/// Whether a backward kernel writes BackwardParams::teacher, and how it adds up the heads of a group: by products over the
/// rows of a tile with eight queries at most, groups of 8 and 16 heads; else between lanes.
enum class TeacherMeans { kNone, kByProducts, kBetweenLanes };
inline constexpr int kMostProductQueries = 8;

}  // namespace openmsa::cuda::sm90::training
