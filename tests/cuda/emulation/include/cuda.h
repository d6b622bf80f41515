// Tensor maps, which no emulated kernel has.
#pragma once

#include "cuda_runtime.h"

struct CUtensorMap {};
