// How many threads a plan has that does not say.
#pragma once

namespace openmsa::cpu {

/// The cores that this process may use: by its affinity, by its CPU quota, and by OPENMSA_NUM_THREADS or, without it,
/// OMP_NUM_THREADS. Throws Failure for an OPENMSA_NUM_THREADS that is no number of threads.
int default_threads();

}  // namespace openmsa::cpu
