#include "lm/ops/blas.h"

#include <dlfcn.h>

#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <string>

namespace openmsa::lm {
namespace {

/// OpenBLAS starts its threads while it is loaded, as many as this variable says: a second one is never wanted then.
class OneThreadWhileLoading {
 public:
  OneThreadWhileLoading() {
    if (const char* value = std::getenv(kName)) before_ = value;
    ::setenv(kName, "1", 1);
  }
  ~OneThreadWhileLoading() {
    if (before_) {
      ::setenv(kName, before_->c_str(), 1);
    } else {
      ::unsetenv(kName);
    }
  }
  OneThreadWhileLoading(const OneThreadWhileLoading&) = delete;
  OneThreadWhileLoading& operator=(const OneThreadWhileLoading&) = delete;

 private:
  static constexpr const char* kName = "OPENBLAS_NUM_THREADS";
  std::optional<std::string> before_;
};

void* load_library() {
  const OneThreadWhileLoading one_thread;
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
