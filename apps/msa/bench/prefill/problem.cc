#include "msa/bench/prefill/problem.h"

#include <algorithm>
#include <numeric>

#include "msa/attend/layer_input.h"
#include "msa/bench/random_fill.h"

namespace openmsa::cli {
namespace {

using T = Tensors;

std::int64_t count(std::initializer_list<std::int64_t> shape) {
  return std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<std::int64_t>());
}

std::int64_t total(const std::vector<PrefillSequence>& sequences, std::int64_t PrefillSequence::*member) {
  return std::accumulate(sequences.begin(), sequences.end(), std::int64_t{0},
                         [&](std::int64_t sum, const PrefillSequence& sequence) { return sum + sequence.*member; });
}

}  // namespace

Config fit_to(Config config, const std::vector<PrefillSequence>& sequences) {
  config.max_batch = std::ssize(sequences);
  config.max_total_q = total(sequences, &PrefillSequence::queries);
  for (const auto& sequence : sequences) config.max_seqlen_k = std::max(config.max_seqlen_k, sequence.keys);
  return config;
}

PrefillProblem::PrefillProblem(Device& device, const Config& config, std::vector<PrefillSequence> sequences,
                               std::uint64_t seed)
    : device_(device), config_(config), sequences_(std::move(sequences)), seed_(seed) {
  const std::int64_t total_q = total(sequences_, &PrefillSequence::queries);
  const std::int64_t total_k = total(sequences_, &PrefillSequence::keys);
  data_.cu_seqlens_q = prefix_sums(&PrefillSequence::queries);
  data_.cu_seqlens_k = prefix_sums(&PrefillSequence::keys);
  data_.q = random({total_q, config.num_heads_q, config.head_dim});
  data_.k = random({total_k, config.num_heads_kv, config.head_dim});
  data_.v = random({total_k, config.num_heads_kv, config.head_dim});
  data_.index_q = random({total_q, config.num_heads_kv, config.index_dim});
  data_.index_k = random({total_k, config.index_dim});
  data_.topk_indices = allocate(OPENMSA_INT32, {config.num_heads_kv, total_q, config.topk});
  data_.o = allocate(config.dtype, {total_q, config.num_heads_q, config.head_dim});
}

openmsa_tensor PrefillProblem::allocate(openmsa_dtype dtype, std::initializer_list<std::int64_t> shape) {
  const std::size_t bytes = static_cast<std::size_t>(count(shape)) * openmsa_dtype_bytes(dtype);
  void* memory = buffers_.emplace_back(device_, bytes).data();
  return openmsa_contiguous(memory, dtype, static_cast<std::int32_t>(shape.size()), shape.begin());
}

openmsa_tensor PrefillProblem::random(std::initializer_list<std::int64_t> shape) {
  const openmsa_tensor tensor = allocate(config_.dtype, shape);
  fill_randomly(device_, tensor, ++seed_);
  return tensor;
}

openmsa_tensor PrefillProblem::prefix_sums(std::int64_t PrefillSequence::*length) {
  std::vector<std::int32_t> sums = {0};
  for (const auto& sequence : sequences_) sums.push_back(sums.back() + static_cast<std::int32_t>(sequence.*length));
  const openmsa_tensor tensor = allocate(OPENMSA_INT32, {std::ssize(sums)});
  device_.copy(tensor.data, sums.data(), sums.size() * sizeof(std::int32_t));
  return tensor;
}

Tensors PrefillProblem::tensors(openmsa_op op) const {
  switch (op) {
    case OPENMSA_OP_SELECT_BLOCKS:
      return pick(data_, {&T::cu_seqlens_q, &T::cu_seqlens_k, &T::index_q, &T::index_k, &T::topk_indices});
    case OPENMSA_OP_SPARSE_ATTENTION:
      return pick(data_, {&T::cu_seqlens_q, &T::cu_seqlens_k, &T::q, &T::k, &T::v, &T::topk_indices, &T::o});
    case OPENMSA_OP_MSA_ATTENTION:
      return pick(data_, {&T::cu_seqlens_q, &T::cu_seqlens_k, &T::q, &T::k, &T::v, &T::index_q, &T::index_k,
                          &T::topk_indices, &T::o});
    default:
      return pick(data_, {&T::cu_seqlens_q, &T::cu_seqlens_k, &T::q, &T::k, &T::v, &T::o});
  }
}

void PrefillProblem::set_selection(const std::vector<std::int32_t>& topk_indices) {
  device_.copy(data_.topk_indices.data, topk_indices.data(), topk_indices.size() * sizeof(std::int32_t));
}

std::vector<std::byte> PrefillProblem::rows(const openmsa_tensor& tensor, std::int64_t first,
                                            std::int64_t count) const {
  const std::size_t row = static_cast<std::size_t>(tensor.strides[0]) * openmsa_dtype_bytes(tensor.dtype);
  std::vector<std::byte> result(static_cast<std::size_t>(count) * row);
  device_.copy(result.data(), static_cast<const std::byte*>(tensor.data) + static_cast<std::size_t>(first) * row,
               result.size());
  return result;
}

std::vector<std::int32_t> PrefillProblem::selection(std::int64_t row) const {
  const openmsa_tensor& indices = data_.topk_indices;
  std::vector<std::int32_t> result(static_cast<std::size_t>(config_.num_heads_kv * config_.topk));
  for (std::int64_t head = 0; head < config_.num_heads_kv; ++head) {
    device_.copy(result.data() + head * config_.topk,
                 static_cast<const std::int32_t*>(indices.data) + head * indices.strides[0] + row * indices.strides[1],
                 static_cast<std::size_t>(config_.topk) * sizeof(std::int32_t));
  }
  return result;
}

}  // namespace openmsa::cli
