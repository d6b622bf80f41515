// Candidates and partial results: what ranks send each other, and the operations that merge it.
#include <algorithm>
#include <initializer_list>

#include "layer.h"

namespace openmsa::nccl {
namespace {

constexpr std::size_t kAlignment = 256;

std::size_t aligned(std::size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

/// Takes memory from the front of a workspace.
class Carver {
 public:
  explicit Carver(openmsa_workspace workspace) : left_(workspace) {}

  void* take(std::size_t bytes) {
    char* const taken = static_cast<char*>(left_.data);
    left_.data = taken + aligned(bytes);
    left_.bytes -= aligned(bytes);
    return taken;
  }
  openmsa_workspace rest() const { return left_; }

 private:
  openmsa_workspace left_;
};

struct Merge {
  const openmsa_plan* plan;
  std::size_t received;  // bytes of what all ranks send, at most
};

/// Throws INVALID_ARGUMENT for an operation that the layer does not have.
Merge merge_of(const openmsa_nccl_layer& layer, openmsa_op op) {
  const openmsa_config& config = layer.config;
  const auto rows = static_cast<std::size_t>(layer.count) * static_cast<std::size_t>(config.max_total_q);
  if (op == OPENMSA_OP_MERGE_CANDIDATES && layer.candidates) {
    const auto places = static_cast<std::size_t>(layer.selected_heads()) * static_cast<std::size_t>(config.topk);
    return {layer.candidates.get(), aligned(rows * places * sizeof(std::int64_t))};
  }
  if (op == OPENMSA_OP_MERGE_PARTIALS && layer.partials) {
    const auto heads = static_cast<std::size_t>(config.num_heads_q / layer.count);
    const auto channels = static_cast<std::size_t>(config.head_dim);
    return {layer.partials.get(),
            aligned(rows * heads * channels * sizeof(float)) + aligned(rows * heads * sizeof(float))};
  }
  const char* const name = openmsa_op_name(op);
  fail(OPENMSA_INVALID_ARGUMENT,
       "op: expected merge_candidates of a layer in HEADS or KEYS, or merge_partials of one in ", "KEYS, got ",
       name != nullptr ? name : "none", " of division ", static_cast<int>(layer.division));
}

std::size_t workspace_bytes(const openmsa_nccl_layer& layer, openmsa_op op) {
  const Merge merge = merge_of(layer, op);
  std::size_t bytes = 0;
  check(openmsa_plan_workspace_bytes(merge.plan, op, &bytes));
  return merge.received + bytes;
}

void check_call(const openmsa_nccl_layer* layer, openmsa_op op, openmsa_workspace workspace) {
  if (layer == nullptr) fail(OPENMSA_INVALID_ARGUMENT, "layer: expected one, got NULL");
  const std::size_t bytes = workspace_bytes(*layer, op);
  if (bytes > 0 && workspace.data == nullptr) fail(OPENMSA_INVALID_ARGUMENT, "workspace: expected memory, got NULL");
  if (workspace.bytes < bytes) {
    fail(OPENMSA_INVALID_ARGUMENT, "workspace: expected at least ", bytes, " bytes, got ", workspace.bytes);
  }
}

/// `text`: the shape as the header has it, and the order in memory.
void check_layout(const char* name, const openmsa_tensor& tensor, std::initializer_list<std::int64_t> shape,
                  std::initializer_list<std::int64_t> strides, const char* text) {
  const auto rank = static_cast<std::int32_t>(shape.size());
  bool is_so = tensor.rank == rank && std::equal(shape.begin(), shape.end(), tensor.shape);
  for (std::int32_t i = 0; is_so && i < rank; ++i) {
    is_so = tensor.shape[i] == 1 || tensor.strides[i] == strides.begin()[i];
  }
  if (is_so && (tensor.data != nullptr || bytes_of(tensor) == 0)) return;
  std::ostringstream got;
  got << (tensor.rank == 0 ? "none" : "[");
  for (std::int32_t i = 0; i < tensor.rank && i < OPENMSA_MAX_RANK; ++i) {
    got << (i > 0 ? ", " : "") << tensor.shape[i] << " (stride " << tensor.strides[i] << ")";
  }
  if (tensor.rank > 0) got << "]";
  fail(OPENMSA_INVALID_ARGUMENT, name, ": expected ", text, " as of the layer, got ", got.str());
}

/// Query tokens of a call.
std::int64_t total_q_of(const openmsa_nccl_layer& layer, const char* name, const openmsa_tensor& tensor,
                        int dimension) {
  const std::int64_t total_q = tensor.rank > dimension ? tensor.shape[dimension] : 0;
  if (total_q > layer.config.max_total_q) {
    fail(OPENMSA_INVALID_ARGUMENT, name, ": expected at most max_total_q = ", layer.config.max_total_q,
         " query tokens, got ", total_q);
  }
  return total_q;
}

/// Piece s of `sent`, which consists of as many as there are ranks, goes to rank s; `received` gets those that are sent here.
void exchange(const openmsa_nccl_layer& layer, const void* sent, void* received, std::size_t piece,
              cudaStream_t stream) {
  for (std::int32_t rank = 0; rank < layer.count; ++rank) {
    const std::size_t place = static_cast<std::size_t>(rank) * piece;
    check(ncclSend(static_cast<const char*>(sent) + place, piece, ncclUint8, rank, layer.comm, stream), "ncclSend");
    check(ncclRecv(static_cast<char*>(received) + place, piece, ncclUint8, rank, layer.comm, stream), "ncclRecv");
  }
}

void merge_candidates(const openmsa_nccl_layer& layer, const openmsa_tensors& given, openmsa_workspace workspace) {
  const openmsa_tensor& candidates = given.candidates;
  const std::int64_t total_q = total_q_of(layer, "candidates", candidates, 1), topk = layer.config.topk;
  const std::int64_t heads = layer.config.num_heads_kv, selected = layer.selected_heads();
  check_layout("candidates", candidates, {heads, total_q, topk}, {total_q * topk, topk, 1},
               "[num_heads_kv, total_q, topk], contiguous,");
  if (candidates.dtype != OPENMSA_INT64) {
    fail(OPENMSA_INVALID_ARGUMENT, "candidates: expected int64, got dtype ", static_cast<int>(candidates.dtype));
  }
  Carver carver(workspace);
  void* const received = carver.take(merge_of(layer, OPENMSA_OP_MERGE_CANDIDATES).received);
  auto* const stream = static_cast<cudaStream_t>(workspace.stream);
  if (total_q > 0 && layer.division == OPENMSA_NCCL_HEADS) {
    Group group;
    const auto count = static_cast<std::size_t>(layer.count);
    exchange(layer, candidates.data, received, bytes_of(candidates) / count, stream);
    group.end();
  } else if (total_q > 0) {
    check(ncclAllGather(candidates.data, received, bytes_of(candidates), ncclUint8, layer.comm, stream),
          "ncclAllGather");
  }
  openmsa_tensors tensors = given;
  const std::int64_t shape[] = {layer.count, selected, total_q, topk};
  tensors.candidates = {};
  tensors.all_candidates = openmsa_contiguous(received, OPENMSA_INT64, 4, shape);
  check(openmsa_merge_candidates(layer.candidates.get(), &tensors, carver.rest()));
}

void merge_partials(const openmsa_nccl_layer& layer, const openmsa_tensors& given, openmsa_workspace workspace) {
  const openmsa_tensor &o = given.partial_o, &lse = given.partial_lse;
  const std::int64_t total_q = total_q_of(layer, "partial_o", o, 1), channels = layer.config.head_dim;
  const std::int64_t all_heads = layer.config.num_heads_q, heads = all_heads / layer.count, size = total_q * channels;
  check_layout("partial_o", o, {1, total_q, all_heads, channels}, {0, channels, size, 1},
               "[1, total_q, num_heads_q, head_dim], heads outermost in memory,");
  check_layout("partial_lse", lse, {1, total_q, all_heads}, {0, 1, total_q},
               "[1, total_q, num_heads_q], heads outermost in memory,");
  if (o.dtype != layer.config.dtype && o.dtype != OPENMSA_FLOAT32) {
    fail(OPENMSA_INVALID_ARGUMENT, "partial_o: expected the plan's dtype or fp32, got dtype ",
         static_cast<int>(o.dtype));
  }
  if (lse.dtype != OPENMSA_FLOAT32) {
    fail(OPENMSA_INVALID_ARGUMENT, "partial_lse: expected fp32, got dtype ", static_cast<int>(lse.dtype));
  }
  Carver carver(workspace);
  void* const received = carver.take(merge_of(layer, OPENMSA_OP_MERGE_PARTIALS).received);
  auto* const received_lse = static_cast<char*>(received) + aligned(bytes_of(o));
  if (total_q > 0) {
    auto* const stream = static_cast<cudaStream_t>(workspace.stream);
    const auto count = static_cast<std::size_t>(layer.count);
    Group group;
    exchange(layer, o.data, received, bytes_of(o) / count, stream);
    exchange(layer, lse.data, received_lse, bytes_of(lse) / count, stream);
    group.end();
  }
  openmsa_tensors tensors = given;
  tensors.partial_o = {
      received, o.dtype, 4, {layer.count, total_q, heads, channels}, {heads * size, channels, size, 1}};
  tensors.partial_lse = {received_lse, lse.dtype, 3, {layer.count, total_q, heads}, {heads * total_q, 1, total_q}};
  check(openmsa_merge_partials(layer.partials.get(), &tensors, carver.rest()));
}

using MergeCall = void (*)(const openmsa_nccl_layer&, const openmsa_tensors&, openmsa_workspace);

openmsa_status merged(MergeCall merge, openmsa_op op, const openmsa_nccl_layer* layer, const openmsa_tensors* tensors,
                      openmsa_workspace workspace) {
  return guarded([&] {
    check_call(layer, op, workspace);
    merge(*layer, tensors_of(tensors), workspace);
  });
}

}  // namespace
}  // namespace openmsa::nccl

openmsa_status openmsa_nccl_workspace_bytes(const openmsa_nccl_layer* layer, openmsa_op op, size_t* bytes) {
  using namespace openmsa::nccl;
  return guarded([&] {
    if (layer == nullptr || bytes == nullptr) {
      fail(OPENMSA_INVALID_ARGUMENT, layer == nullptr ? "layer" : "bytes", ": expected one, got NULL");
    }
    *bytes = workspace_bytes(*layer, op);
  });
}

openmsa_status openmsa_nccl_merge_candidates(const openmsa_nccl_layer* layer, const openmsa_tensors* tensors,
                                             openmsa_workspace workspace) {
  using namespace openmsa::nccl;
  return merged(merge_candidates, OPENMSA_OP_MERGE_CANDIDATES, layer, tensors, workspace);
}

openmsa_status openmsa_nccl_merge_partials(const openmsa_nccl_layer* layer, const openmsa_tensors* tensors,
                                           openmsa_workspace workspace) {
  using namespace openmsa::nccl;
  return merged(merge_partials, OPENMSA_OP_MERGE_PARTIALS, layer, tensors, workspace);
}
