// A layer on a communicator, what it needs of NCCL and of the machine, and how calls fail.
#pragma once

#include <nccl.h>
#include <openmsa/openmsa_nccl.h>

#include <cstdint>
#include <memory>
#include <sstream>
#include <string>

namespace openmsa::nccl {

/// Caught at the C API.
struct Failure {
  openmsa_status status;
  std::string message;
};

template <class... Parts>
[[noreturn]] void fail(openmsa_status status, const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Failure{status, message.str()};
}

/// Of an operation of openmsa.h.
inline void check(openmsa_status status) {
  if (status != OPENMSA_SUCCESS) fail(status, openmsa_last_error());
}

inline void check(ncclResult_t result, const char* call) {
  if (result != ncclSuccess) fail(OPENMSA_CUDA_ERROR, call, ": ", ncclGetErrorString(result));
}

/// Sends and receives that wait for each other, between ncclGroupStart and ncclGroupEnd.
class Group {
 public:
  Group() { check(ncclGroupStart(), "ncclGroupStart"); }
  ~Group() {
    if (is_open_) ncclGroupEnd();  // a call of the group has failed, and says so
  }
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  void end() {
    is_open_ = false;
    check(ncclGroupEnd(), "ncclGroupEnd");
  }

 private:
  bool is_open_ = true;
};

struct DestroyPlan {
  void operator()(openmsa_plan* plan) const { openmsa_plan_destroy(plan); }
};
using Plan = std::unique_ptr<openmsa_plan, DestroyPlan>;

/// The caller's tensors, those absent that its header did not have. Throws INVALID_ARGUMENT.
openmsa_tensors tensors_of(const openmsa_tensors* given);

std::size_t bytes_of(const openmsa_tensor& tensor);

inline std::int64_t ceil_div(std::int64_t count, std::int64_t size) { return (count + size - 1) / size; }

/// Runs `body` and turns what it throws into a status and the text of openmsa_nccl_last_error.
template <class Body>
openmsa_status guarded(const Body& body);

openmsa_status failed(openmsa_status status, std::string message) noexcept;

}  // namespace openmsa::nccl

struct openmsa_nccl_layer {
  openmsa_config config;  // of the whole layer, in the rank's shard
  openmsa_nccl_division division;
  ncclComm_t comm;
  std::int32_t count, rank;
  openmsa::nccl::Plan candidates;  // merges candidates, for the KV heads that the rank selects for
  openmsa::nccl::Plan partials;    // merges parts, for the rank's share of the query heads

  std::int32_t selected_heads() const {
    return division == OPENMSA_NCCL_HEADS ? config.num_heads_kv / count : config.num_heads_kv;
  }
};

template <class Body>
openmsa_status openmsa::nccl::guarded(const Body& body) {
  try {
    body();
    return OPENMSA_SUCCESS;
  } catch (const Failure& failure) {
    return failed(failure.status, failure.message);
  } catch (const std::bad_alloc&) {
    return failed(OPENMSA_OUT_OF_MEMORY, "out of memory");
  }
}
