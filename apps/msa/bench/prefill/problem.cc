#include "msa/bench/prefill/problem.h"

#include <algorithm>
#include <numeric>

namespace openmsa::cli {
namespace {

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
    : memory_(device, seed), config_(config), sequences_(std::move(sequences)) {
  const std::int64_t total_q = total(sequences_, &PrefillSequence::queries);
  const std::int64_t total_k = total(sequences_, &PrefillSequence::keys);
  data_.cu_seqlens_q = prefix_sums(&PrefillSequence::queries);
  data_.cu_seqlens_k = prefix_sums(&PrefillSequence::keys);
  data_.q = memory_.random(config.dtype, {total_q, config.num_heads_q, config.head_dim});
  data_.k = memory_.random(config.dtype, {total_k, config.num_heads_kv, config.head_dim});
  data_.v = memory_.random(config.dtype, {total_k, config.num_heads_kv, config.head_dim});
  data_.index_q = memory_.random(config.dtype, {total_q, config.num_heads_kv, config.index_dim});
  data_.index_k = memory_.random(config.dtype, {total_k, config.index_dim});
  data_.topk_indices = memory_.allocate(OPENMSA_INT32, {config.num_heads_kv, total_q, config.topk});
  data_.o = memory_.allocate(config.dtype, {total_q, config.num_heads_q, config.head_dim});
}

std::uint64_t PrefillProblem::bytes(const Config& config, const std::vector<PrefillSequence>& sequences) {
  const std::int64_t heads_q = config.num_heads_q, heads_kv = config.num_heads_kv, indices = heads_kv * config.topk;
  const std::int64_t query = 2 * heads_q * config.head_dim + heads_kv * config.index_dim;  // q, o, index_q
  const std::int64_t key = 2 * heads_kv * config.head_dim + config.index_dim;              // k, v, index_k
  const auto element = static_cast<std::int64_t>(openmsa_dtype_bytes(config.dtype));
  const std::int64_t total_q = total(sequences, &PrefillSequence::queries);
  const std::int64_t total_k = total(sequences, &PrefillSequence::keys);
  return static_cast<std::uint64_t>(total_q * (query * element + indices * std::int64_t{sizeof(std::int32_t)}) +
                                    total_k * key * element);
}

openmsa_tensor PrefillProblem::prefix_sums(std::int64_t PrefillSequence::*length) {
  std::vector<std::int32_t> sums = {0};
  for (const auto& sequence : sequences_) sums.push_back(sums.back() + static_cast<std::int32_t>(sequence.*length));
  return memory_.upload(sums, {std::ssize(sums)});
}

Tensors PrefillProblem::tensors(openmsa_op op) const { return tensors_of(config_, op, data_); }

void PrefillProblem::set_selection(const std::vector<std::int32_t>& topk_indices) {
  device().copy(data_.topk_indices.data, topk_indices.data(), topk_indices.size() * sizeof(std::int32_t));
}

}  // namespace openmsa::cli
