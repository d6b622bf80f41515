#include "cpu/default_threads.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "core/error.h"
#include "cpu/quota.h"
#include "cpu/threads.h"

namespace openmsa::cpu {
namespace {

constexpr int kUnlimited = std::numeric_limits<int>::max();

const char* variable(const char* name) {
  const char* text = std::getenv(name);
  return text == nullptr || *text == '\0' ? nullptr : text;
}

/// OMP_NUM_THREADS is other libraries' too: a list for nested loops, of which the first number counts, and what is no
/// number is not ours to refuse.
int threads_in_environment() {
  int threads = 0;
  if (const char* own = variable("OPENMSA_NUM_THREADS")) {
    const char* const end = own + std::strlen(own);
    const auto [stop, error] = std::from_chars(own, end, threads);
    core::require(error == std::errc() && stop == end && threads > 0,
                  "OPENMSA_NUM_THREADS: expected a positive number, got ", own);
    return threads;
  }
  if (const char* shared = variable("OMP_NUM_THREADS")) {
    std::from_chars(shared, shared + std::strlen(shared), threads);
  }
  return threads > 0 ? threads : kUnlimited;
}

}  // namespace

int default_threads() { return std::min({Threads::available(), quota_cores(), threads_in_environment()}); }

}  // namespace openmsa::cpu
