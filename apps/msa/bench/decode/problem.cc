#include "msa/bench/decode/problem.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "judge/layer.h"
#include "judge/random_fill.h"

namespace openmsa::cli {
namespace {

using judge::ceil_div;

/// More than the last-level cache of most processors, and than twice the L2 cache of a GPU.
constexpr std::int64_t kMoreThanCache = std::int64_t{256} << 20;
/// Calls of a graph: enough to outweigh its start, few enough to be captured at once.
constexpr std::int64_t kLeastCalls = 8, kMostCalls = 64;

/// How often `bytes` must be read until nothing of the first time is left in a cache.
std::int64_t reads_beyond_cache(std::int64_t bytes) {
  return ceil_div(kMoreThanCache, std::max<std::int64_t>(bytes, 1));
}

/// The part of `tensor` that is call number `call`: `rows` of its first dimension.
openmsa_tensor part(openmsa_tensor tensor, int call, std::int64_t rows) {
  const std::int64_t bytes = rows * tensor.strides[0] * static_cast<std::int64_t>(openmsa_dtype_bytes(tensor.dtype));
  tensor.data = static_cast<std::byte*>(tensor.data) + call * bytes;
  tensor.shape[0] = rows;
  return tensor;
}

/// [sequences, tokens, channels] vectors of variance 1; those of a sequence have the correlation `agreement`.
std::vector<float> correlated(std::int64_t sequences, std::int64_t tokens, std::int64_t channels, double agreement,
                              std::uint64_t seed) {
  const auto shared = static_cast<float>(std::sqrt(agreement)), own = static_cast<float>(std::sqrt(1 - agreement));
  judge::RandomNumbers numbers(seed);
  std::vector<float> common(static_cast<std::size_t>(channels));
  std::vector<float> result;
  result.reserve(static_cast<std::size_t>(sequences * tokens * channels));
  for (std::int64_t sequence = 0; sequence < sequences; ++sequence) {
    for (float& x : common) x = numbers.next();
    for (std::int64_t token = 0; token < tokens; ++token) {
      for (float x : common) result.push_back(shared * x + own * numbers.next());
    }
  }
  return result;
}

std::vector<std::int32_t> choose_lengths(std::int64_t batch, const DecodeShape& shape, std::uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::vector<std::int32_t> lengths;
  for (std::int64_t b = 0; b < batch; ++b) {
    double length = static_cast<double>(shape.context);
    if (shape.has_mixed_lengths) {  // log-uniform
      const double unit = static_cast<double>(generator() >> 11) * 0x1p-53;
      length = kShortestMixed * std::pow(length / kShortestMixed, unit);
    }
    lengths.push_back(static_cast<std::int32_t>(length));
  }
  return lengths;
}

/// Bytes of a token's keys and values, and of its index key.
std::int64_t token_bytes(const Config& config) {
  return 2 * config.num_heads_kv * config.head_dim * static_cast<std::int64_t>(openmsa_dtype_bytes(config.kv_dtype));
}
std::int64_t index_bytes(const Config& config) {
  return config.index_dim * static_cast<std::int64_t>(openmsa_dtype_bytes(config.index_dtype));
}

}  // namespace

Config fit_to(Config config, const DecodeShape& shape) {
  config.max_total_q = config.max_batch * shape.queries;
  config.max_seqlen_k = shape.context;
  return config;
}

DecodeProblem::DecodeProblem(Device& device, const Config& config, const DecodeShape& shape, std::uint64_t seed)
    : memory_(device, seed),
      config_(fit_to(config, shape)),
      shape_(shape),
      pages_per_row_(ceil_div(shape.context, config.page_size)) {
  seqlens_k_ = choose_lengths(config_.max_batch, shape_, memory_.next_seed());
  for (const std::int32_t length : seqlens_k_) pages_per_set_ += num_pages(length);
  choose_counts();
  deal_pages();
  std::vector<std::int32_t> cu_seqlens_q;
  for (std::int32_t b = 0; b <= config.max_batch; ++b) cu_seqlens_q.push_back(b * shape.queries);
  data_.cu_seqlens_q = memory_.upload(cu_seqlens_q, {config_.max_batch + 1});
  data_.seqlens_k = memory_.upload(seqlens_k_, {config_.max_batch});
  data_.block_table = memory_.upload(block_table_, {num_sets_ * config_.max_batch, pages_per_row_});
  const std::int64_t pages = num_sets_ * pages_per_set_, page_size = config_.page_size;
  data_.k_cache = memory_.random(config_.kv_dtype, {pages, page_size, config_.num_heads_kv, config_.head_dim});
  data_.v_cache = memory_.random(config_.kv_dtype, {pages, page_size, config_.num_heads_kv, config_.head_dim});
  data_.index_k_cache = memory_.random(config_.index_dtype, {pages, page_size, config_.index_dim});
  data_.q = queries(config_.num_heads_q, config_.head_dim);
  data_.index_q = queries(config_.num_heads_kv, config_.index_dim);
  data_.topk_indices = memory_.allocate(
      OPENMSA_INT32, {std::int64_t{num_calls_} * config_.num_heads_kv, config_.max_total_q, config_.topk});
  data_.o = memory_.allocate(config_.dtype, {config_.max_total_q, config_.num_heads_q, config_.head_dim});
}

std::uint64_t DecodeProblem::bytes_on_host(const Config& config, const DecodeShape& shape, std::uint64_t seed) {
  std::int64_t pages = 0;
  for (const std::int32_t length : choose_lengths(config.max_batch, shape, seed + 1)) {
    pages += ceil_div(length, config.page_size);
  }
  const std::int64_t set = pages * config.page_size * (token_bytes(config) + index_bytes(config));
  return static_cast<std::uint64_t>(set * reads_beyond_cache(set));
}

std::int64_t DecodeProblem::num_pages(std::int32_t seqlen_k) const { return ceil_div(seqlen_k, config_.page_size); }

/// A graph is to read more than the cache holds before it comes back to a page: the index branch reads all index keys
/// of a call, attention only what the call's queries choose. A call on the host may read the whole of its pages.
void DecodeProblem::choose_counts() {
  const std::int64_t token = token_bytes(config_);
  const std::int64_t index = pages_per_set_ * config_.page_size * index_bytes(config_);
  if (config_.backend != OPENMSA_BACKEND_CUDA) {
    num_sets_ = static_cast<int>(reads_beyond_cache(index + pages_per_set_ * config_.page_size * token));
    num_calls_ = num_sets_;
    return;
  }
  std::int64_t attended = 0;
  for (std::int64_t length : seqlens_k_) {
    attended += std::min<std::int64_t>(length, std::int64_t{config_.topk} * config_.block_size) * token;
  }
  const std::int64_t sets = std::max<std::int64_t>(reads_beyond_cache(index), 2);
  num_calls_ = static_cast<int>(std::clamp(std::max(sets, reads_beyond_cache(attended)), kLeastCalls, kMostCalls));
  num_sets_ = static_cast<int>(std::min<std::int64_t>(sets, num_calls_));
}

/// Every set gets pages of its own, in random order.
void DecodeProblem::deal_pages() {
  std::vector<std::int32_t> pages(static_cast<std::size_t>(num_sets_ * pages_per_set_));
  std::iota(pages.begin(), pages.end(), 0);
  std::shuffle(pages.begin(), pages.end(), std::mt19937_64(memory_.next_seed()));
  block_table_.assign(static_cast<std::size_t>(num_sets_ * config_.max_batch * pages_per_row_), -1);
  auto next = pages.begin();
  auto row = block_table_.begin();
  for (int set = 0; set < num_sets_; ++set) {
    for (std::int32_t length : seqlens_k_) {
      std::copy_n(next, num_pages(length), row);
      next += num_pages(length);
      row += pages_per_row_;
    }
  }
}

openmsa_tensor DecodeProblem::queries(std::int32_t heads, std::int32_t dim) {
  const openmsa_tensor tensor = memory_.allocate(config_.dtype, {num_calls_ * config_.max_total_q, heads, dim});
  const std::vector<std::byte> values =
      judge::rounded(config_.dtype, correlated(num_calls_ * config_.max_batch, shape_.queries,
                                               std::int64_t{heads} * dim, shape_.agreement, memory_.next_seed()));
  device().copy(tensor.data, values.data(), values.size());
  return tensor;
}

Tensors DecodeProblem::tensors(openmsa_op op, int call) const {
  Tensors all = data_;
  all.block_table = part(data_.block_table, call % num_sets_, config_.max_batch);
  all.q = part(data_.q, call, config_.max_total_q);
  all.index_q = part(data_.index_q, call, config_.max_total_q);
  all.topk_indices = part(data_.topk_indices, call, config_.num_heads_kv);
  return tensors_of(config_, op, all);
}

std::span<const std::int32_t> DecodeProblem::pages(int call, std::int64_t sequence) const {
  const std::int64_t row = call % num_sets_ * config_.max_batch + sequence;
  return std::span(block_table_).subspan(row * pages_per_row_, num_pages(seqlens_k_[sequence]));
}

std::vector<std::int32_t> DecodeProblem::selection(int call) const {
  const openmsa_tensor indices = part(data_.topk_indices, call, config_.num_heads_kv);
  std::vector<std::int32_t> result(static_cast<std::size_t>(config_.num_heads_kv * indices.strides[0]));
  device().copy(result.data(), indices.data, result.size() * sizeof(std::int32_t));
  return result;
}

}  // namespace openmsa::cli
