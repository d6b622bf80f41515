// The names under which kernels declare dynamic shared memory.
#include "cuda/emulation/machine.h"

OPENMSA_EMULATE_SHARED(openmsa::cuda::generic, raw)
OPENMSA_EMULATE_SHARED(openmsa::cuda::sm80::attend, shared)
OPENMSA_EMULATE_SHARED(openmsa::cuda::sm80::recall, shared)
OPENMSA_EMULATE_SHARED(openmsa::cuda::sm80::select, shared)
OPENMSA_EMULATE_SHARED(openmsa::cuda::sm80::training, shared)
OPENMSA_EMULATE_SHARED(openmsa::cuda::sm80::training::kl, shared)
