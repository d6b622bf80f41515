// OpenBLAS, loaded by the first product. A program linked with it would start a thread per core before main, whatever it
// is about to do, and wait for them at its end.
#pragma once

#include <cblas.h>

namespace openmsa::lm {

/// Functions of OpenBLAS by their names there.
struct OpenBlas {
  decltype(&::cblas_sgemm) sgemm;
  decltype(&::openblas_set_num_threads) set_num_threads;
  decltype(&::openblas_get_num_threads) get_num_threads;
};

/// OpenBLAS with one thread: whoever sets another number sets it back. Throws std::runtime_error where it cannot be
/// loaded.
const OpenBlas& open_blas();

}  // namespace openmsa::lm
