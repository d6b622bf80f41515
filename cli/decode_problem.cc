#include "decode_problem.h"

#include <algorithm>
#include <numeric>
#include <random>

#include "core/dtype.h"

namespace openmsa::cli {
namespace {

using T = Tensors;

/// Uniform with variance 1, so that scores spread as those of normalised heads do.
template <class Element>
void fill(Element* data, std::size_t size, std::uint64_t seed) {
  constexpr float kLimit = 1.7320508f;
  std::mt19937_64 generator(seed);
  for (std::size_t i = 0; i < size; ++i) {
    const float unit = static_cast<float>(generator() >> 40) * 0x1p-24f;
    data[i] = core::round_to<Element>((2 * unit - 1) * kLimit);
  }
}

/// More than the last-level cache of most machines.
constexpr std::int64_t kLeastBytes = std::int64_t{256} << 20;

std::int64_t page_bytes(const Config& config) {
  const std::int64_t channels = std::int64_t{2} * config.num_heads_kv * config.head_dim + config.index_dim;
  return channels * config.page_size * static_cast<std::int64_t>(openmsa_dtype_bytes(config.dtype));
}

std::size_t count(std::initializer_list<std::int64_t> shape) {
  return static_cast<std::size_t>(
      std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<std::int64_t>()));
}

}  // namespace

DecodeProblem::DecodeProblem(const Config& config, std::uint64_t seed) : config_(config), seed_(seed) {
  const std::int64_t batch = config.max_batch;
  pages_per_sequence_ = (config.max_seqlen_k + config.page_size - 1) / config.page_size;
  cu_seqlens_q_.resize(batch + 1);
  std::iota(cu_seqlens_q_.begin(), cu_seqlens_q_.end(), 0);
  seqlens_k_.resize(batch);
  block_table_.resize(batch * pages_per_sequence_);
  pages_.resize(std::max(batch * pages_per_sequence_, kLeastBytes / page_bytes(config)));
  std::iota(pages_.begin(), pages_.end(), 0);
  std::shuffle(pages_.begin(), pages_.end(), std::mt19937_64(seed));

  data_.cu_seqlens_q = view(cu_seqlens_q_.data(), {batch + 1});
  data_.seqlens_k = view(seqlens_k_.data(), {batch});
  data_.block_table = view(block_table_.data(), {batch, pages_per_sequence_});
  const auto num_pages = static_cast<std::int64_t>(pages_.size());
  data_.q = random({batch, config.num_heads_q, config.head_dim});
  data_.index_q = random({batch, config.num_heads_kv, config.index_dim});
  data_.k_cache = random({num_pages, config.page_size, config.num_heads_kv, config.head_dim});
  data_.v_cache = random({num_pages, config.page_size, config.num_heads_kv, config.head_dim});
  data_.index_k_cache = random({num_pages, config.page_size, config.index_dim});
  data_.topk_indices = allocate(OPENMSA_INT32, {config.num_heads_kv, batch, config.topk});
  data_.o = allocate(config.dtype, {batch, config.num_heads_q, config.head_dim});
  set_context(config.max_seqlen_k);
}

void DecodeProblem::set_context(std::int64_t context) {
  std::fill(seqlens_k_.begin(), seqlens_k_.end(), static_cast<std::int32_t>(context));
  rotate();
}

void DecodeProblem::rotate() {
  const std::int64_t used = (context() + config_.page_size - 1) / config_.page_size;
  for (std::int64_t sequence = 0; sequence < config_.max_batch; ++sequence) {
    for (std::int64_t page = 0; page < used; ++page) {
      block_table_[sequence * pages_per_sequence_ + page] = pages_[next_page_];
      next_page_ = (next_page_ + 1) % pages_.size();
    }
  }
}

openmsa_tensor DecodeProblem::allocate(openmsa_dtype dtype, std::initializer_list<std::int64_t> shape) {
  void* memory = memory_.emplace_back().reserve(count(shape) * openmsa_dtype_bytes(dtype)).data;
  return openmsa_contiguous(memory, dtype, static_cast<std::int32_t>(shape.size()), shape.begin());
}

openmsa_tensor DecodeProblem::random(std::initializer_list<std::int64_t> shape) {
  const openmsa_tensor tensor = allocate(config_.dtype, shape);
  core::visit_dtype(config_.dtype,
                    [&]<class Element>(Element) { fill(static_cast<Element*>(tensor.data), count(shape), ++seed_); });
  return tensor;
}

Tensors DecodeProblem::tensors(openmsa_op op) const {
  Tensors result = pick(data_, {&T::cu_seqlens_q, &T::seqlens_k, &T::block_table});
  const auto add = [&](std::initializer_list<TensorMember> members) {
    for (TensorMember member : members) result.*member = data_.*member;
  };
  switch (op) {
    case OPENMSA_OP_BLOCK_SCORES:
      add({&T::index_q, &T::index_k_cache});
      break;
    case OPENMSA_OP_SELECT_BLOCKS:
      add({&T::index_q, &T::index_k_cache, &T::topk_indices});
      break;
    case OPENMSA_OP_SPARSE_ATTENTION:
      add({&T::q, &T::k_cache, &T::v_cache, &T::topk_indices, &T::o});
      break;
    case OPENMSA_OP_MSA_ATTENTION:
      add({&T::q, &T::index_q, &T::k_cache, &T::v_cache, &T::index_k_cache, &T::topk_indices, &T::o});
      break;
    default:
      add({&T::q, &T::k_cache, &T::v_cache, &T::o});
      break;
  }
  return result;
}

}  // namespace openmsa::cli
