// Caller-owned workspace, carved front to back. An arena without memory measures: the code that carves a kernel's
// scratch also tells the plan how large it is.
#pragma once

#include <cstddef>
#include <cstdint>

namespace openmsa::core {

class Arena {
 public:
  Arena() = default;
  explicit Arena(void* memory) : memory_(static_cast<std::byte*>(memory)) {}

  /// `count` objects of T on a 64-byte boundary; nullptr while measuring.
  template <class T>
  T* take(std::int64_t count) {
    const std::size_t begin = used_;
    used_ += (static_cast<std::size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + begin);
  }

  std::size_t used() const { return used_; }

  static constexpr std::size_t kAlignment = 64;

 private:
  std::byte* memory_ = nullptr;
  std::size_t used_ = 0;
};

}  // namespace openmsa::core
