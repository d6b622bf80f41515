#include "msa/bench/host_rates.h"

#include <cstring>
#include <thread>
#include <vector>

#include "lm/ops/blas.h"
#include "msa/device/timing.h"

namespace openmsa::cli {
namespace {

constexpr int kRepeats = 7;

}  // namespace

double sgemm_tflops(int threads) {
  constexpr blasint kSize = 1024;
  const std::vector<float> a(std::size_t{kSize} * kSize, 1.0f), b = a;
  std::vector<float> c(a.size());
  const lm::OpenBlas& blas = lm::open_blas();
  const int before = blas.get_num_threads();
  blas.set_num_threads(threads);
  Timing timing;
  for (int i = 0; i < kRepeats; ++i) {
    timing.measure([&] {
      blas.sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, kSize, kSize, kSize, 1.0f, a.data(), kSize, b.data(), kSize,
                 0.0f, c.data(), kSize);
    });
  }
  blas.set_num_threads(before);
  return 2.0 * kSize * kSize * kSize / timing.median() * 1e-9;
}

double copy_gb_per_s(int threads) {
  constexpr std::size_t kBytes = std::size_t{256} << 20;
  const std::vector<char> from(kBytes, 1);
  std::vector<char> to(kBytes, 2);
  const std::size_t part = kBytes / static_cast<std::size_t>(threads);
  Timing timing;
  for (int i = 0; i < kRepeats; ++i) {
    timing.measure([&] {
      std::vector<std::jthread> workers;
      for (int t = 0; t < threads; ++t) {
        workers.emplace_back([&, begin = part * static_cast<std::size_t>(t)] {
          std::memcpy(to.data() + begin, from.data() + begin, part);
        });
      }
    });
  }
  return 2.0 * static_cast<double>(part) * threads / timing.median() * 1e-6;
}

}  // namespace openmsa::cli
