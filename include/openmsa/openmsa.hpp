// openmsa: MiniMax Sparse Attention, C++20 API. Thin over openmsa.h, which documents shapes, dtypes and equations:
// the same structs and operations, with ownership, typed views and one exception type.
#pragma once

#include <openmsa/openmsa.h>

#include <array>
#include <cstdint>
#include <memory>
#include <new>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

namespace openmsa {

using Config = openmsa_config;
using Tensor = openmsa_tensor;
using Tensors = openmsa_tensors;

/// Any status but OPENMSA_SUCCESS; what() names argument, expected and got.
class Error : public std::runtime_error {
 public:
  explicit Error(openmsa_status status) : std::runtime_error(openmsa_last_error()), status_(status) {}
  openmsa_status status() const noexcept { return status_; }

 private:
  openmsa_status status_;
};

inline void check(openmsa_status status) {
  if (status != OPENMSA_SUCCESS) throw Error(status);
}

/// Defaults of openmsa_config_init.
inline Config config() {
  Config result;
  openmsa_config_init(&result);
  return result;
}

/// All tensors absent.
inline Tensors tensors() {
  Tensors result;
  openmsa_tensors_init(&result);
  return result;
}

/// Contiguous view of `data`. For bf16, fp16 and fp8, whose C++ types are the caller's, name the dtype.
template <std::size_t rank>
Tensor view(const void* data, openmsa_dtype dtype, const std::int64_t (&shape)[rank]) {
  static_assert(rank <= OPENMSA_MAX_RANK);
  return openmsa_contiguous(const_cast<void*>(data), dtype, static_cast<std::int32_t>(rank), shape);
}

template <class T, std::size_t rank>
Tensor view(T* data, const std::int64_t (&shape)[rank]) {
  using Element = std::remove_const_t<T>;
  static_assert(std::is_same_v<Element, float> || std::is_same_v<Element, double> ||
                std::is_same_v<Element, std::int32_t>);
  constexpr openmsa_dtype dtype = std::is_same_v<Element, float>    ? OPENMSA_FLOAT32
                                  : std::is_same_v<Element, double> ? OPENMSA_FLOAT64
                                                                    : OPENMSA_INT32;
  return view(static_cast<const void*>(data), dtype, shape);
}

/// "msa_attention"; nullptr for a value that is no operation.
inline const char* name_of(openmsa_op op) { return openmsa_op_name(op); }

/// The operation of that name.
inline openmsa_op op_from_name(const char* name) {
  openmsa_op op{};
  check(openmsa_op_from_name(name, &op));
  return op;
}

/// Names of all tensors, in the order of openmsa_tensors.
inline std::vector<const char*> tensor_names() {
  std::vector<const char*> names;
  for (std::int32_t i = 0; i < openmsa_tensor_count(); ++i) names.push_back(openmsa_tensor_name(i));
  return names;
}

/// The tensor of that name; std::out_of_range when there is none.
inline Tensor& at(Tensors& tensors, const char* name) {
  Tensor* const tensor = openmsa_tensors_at(&tensors, name);
  if (tensor == nullptr) throw std::out_of_range(name);
  return *tensor;
}
inline const Tensor& at(const Tensors& tensors, const char* name) { return at(const_cast<Tensors&>(tensors), name); }

/// Bits of openmsa_use.
inline std::int32_t use_of(const Config& config, openmsa_op op, const char* name) {
  return openmsa_tensor_use(&config, op, name);
}
inline bool reads(const Config& config, openmsa_op op, const char* name) {
  return (use_of(config, op, name) & (OPENMSA_READS | OPENMSA_MAY_READ)) != 0;
}
inline bool writes(const Config& config, openmsa_op op, const char* name) {
  return (use_of(config, op, name) & (OPENMSA_WRITES | OPENMSA_MAY_WRITE)) != 0;
}

/// Threads of a CPU plan with num_threads = 0.
inline std::int32_t default_threads() {
  std::int32_t threads = 0;
  check(openmsa_default_threads(&threads));
  return threads;
}

/// Memory for the operations of one thread; grows, never shrinks, 64-byte aligned.
class Workspace {
 public:
  /// At least `bytes` of memory; contents are undefined.
  openmsa_workspace reserve(std::size_t bytes) {
    if (bytes > bytes_) {
      memory_.reset();
      memory_.reset(static_cast<std::byte*>(::operator new(bytes, kAlignment)));
      bytes_ = bytes;
    }
    return {memory_.get(), bytes_, nullptr};
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(std::byte* memory) const noexcept { ::operator delete(memory, kAlignment); }
  };
  std::unique_ptr<std::byte, Free> memory_;
  std::size_t bytes_ = 0;
};

/// An immutable plan; copies share it.
class Plan {
 public:
  explicit Plan(const Config& config) {
    openmsa_plan* plan = nullptr;
    check(openmsa_plan_create(&config, &plan));
    plan_.reset(plan, &openmsa_plan_destroy);
  }

  std::size_t workspace_bytes(openmsa_op op) const {
    std::size_t bytes = 0;
    check(openmsa_plan_workspace_bytes(plan_.get(), op, &bytes));
    return bytes;
  }

  /// Runs `op` in caller-owned workspace; throws Error.
  void run(openmsa_op op, const Tensors& tensors, openmsa_workspace workspace) const {
    check(openmsa_run(plan_.get(), op, &tensors, workspace));
  }

  /// Runs `op`, growing `workspace` as needed.
  void run(openmsa_op op, const Tensors& tensors, Workspace& workspace) const {
    run(op, tensors, workspace.reserve(workspace_bytes(op)));
  }

  /// Throws the Error that run() would throw of these tensors.
  void check_tensors(openmsa_op op, const Tensors& tensors) const { check(openmsa_check(plan_.get(), op, &tensors)); }

  const openmsa_plan* get() const noexcept { return plan_.get(); }

 private:
  std::shared_ptr<openmsa_plan> plan_;
};

}  // namespace openmsa
