// Rates of the plainest code there is on this machine's cores: the yardsticks of the CPU backend.
#pragma once

namespace openmsa::cli {

/// Operations per second, in 10^12, of OpenBLAS's fp32 product of two square matrices on `threads` threads.
double sgemm_tflops(int threads);

/// Bytes read and written per second, in 10^9, by memcpy on `threads` threads of more than the caches hold.
double copy_gb_per_s(int threads);

}  // namespace openmsa::cli
