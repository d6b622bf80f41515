#include "lm/ops/blas.h"

#include <dlfcn.h>

#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <string>

namespace openmsa::lm {
namespace {

/// A variable of the environment that OpenBLAS reads while it is loaded.
class WhileLoading {
 public:
  WhileLoading(const char* name, const char* value) : name_(name) {
    if (const char* before = std::getenv(name)) before_ = before;
    ::setenv(name, value, 1);
  }
  ~WhileLoading() {
    if (before_) {
      ::setenv(name_, before_->c_str(), 1);
    } else {
      ::unsetenv(name_);
    }
  }
  WhileLoading(const WhileLoading&) = delete;
  WhileLoading& operator=(const WhileLoading&) = delete;

 private:
  const char* name_;
  std::optional<std::string> before_;
};

/// The kernels for this processor's vectors; nullptr: OpenBLAS chooses. It goes by the names of processors, and takes newer
/// ones for older or lesser ones: a tenth to a half of the speed, docs/performance.md.
const char* kernels() {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return "SKYLAKEX";
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "HASWELL";
#endif
  return nullptr;
}

void* load_library() {
  // It starts as many threads as it is told while it is loaded: a second one is never wanted then.
  const WhileLoading one_thread("OPENBLAS_NUM_THREADS", "1");
  constexpr const char* kKernels = "OPENBLAS_CORETYPE";  // of the user's choice, where that is set
  std::optional<WhileLoading> chosen;
  if (std::getenv(kKernels) == nullptr && kernels() != nullptr) chosen.emplace(kKernels, kernels());
  for (const char* name : {OPENMSA_OPENBLAS, "libopenblas.so.0"}) {  // that of the build, or where it runs elsewhere
    if (void* library = ::dlopen(name, RTLD_NOW | RTLD_LOCAL)) return library;
  }
  throw std::runtime_error(std::string("OpenBLAS cannot be loaded: ") + ::dlerror());
}

template <class Function>
void find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(::dlsym(library, name));
  if (function == nullptr) throw std::runtime_error(std::string("OpenBLAS has no ") + name);
}

OpenBlas load() {
  void* const library = load_library();
  OpenBlas result{};
  find(library, "cblas_sgemm", result.sgemm);
  find(library, "openblas_set_num_threads", result.set_num_threads);
  find(library, "openblas_get_num_threads", result.get_num_threads);
  result.set_num_threads(1);  // the program may have loaded it before
  return result;
}

}  // namespace

const OpenBlas& open_blas() {
  static const OpenBlas loaded = load();
  return loaded;
}

}  // namespace openmsa::lm
