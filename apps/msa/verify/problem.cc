#include "msa/verify/problem.h"

#include <algorithm>
#include <numeric>

#include "core/dtype.h"

namespace openmsa::cli {
namespace {

std::int64_t ceil_div(std::int64_t count, std::int64_t size) { return (count + size - 1) / size; }

template <class Count>
std::vector<std::int32_t> prefix_sums(std::size_t size, const Count& count) {
  std::vector<std::int32_t> sums = {0};
  for (std::size_t i = 0; i < size; ++i) sums.push_back(sums.back() + static_cast<std::int32_t>(count(i)));
  return sums;
}

}  // namespace

std::string describe(const VerifyShape& shape) {
  const auto text = [](std::int32_t value) { return std::to_string(value); };
  return text(shape.num_heads_kv) + " KV heads of " + text(shape.head_dim) + ", " + text(shape.group_size) +
         " query heads each, index_dim " + text(shape.index_dim) + ", block_size " + text(shape.block_size) +
         ", topk " + text(shape.topk) + ", " + text(shape.num_init_blocks) + " initial and " +
         text(shape.num_local_blocks) + " local blocks, page_size " + text(shape.page_size) +
         (shape.is_decode ? ", decode" : ", prompts");
}

VerifyProblem::VerifyProblem(const VerifyShape& shape, openmsa_dtype dtype, bool has_fp8_keys, std::uint64_t seed)
    : config_(openmsa::config()), generator_(seed) {
  // Also a sequence without queries and one without keys; chunks behind a prefix; ends that are no ends of a kv_block.
  sequences_ = shape.is_decode ? std::vector<Sequence>{{1, 2500}, {3, 65}, {0, 30}, {16, 333}, {1, 0}}
                               : std::vector<Sequence>{{70, 70}, {1, 259}, {0, 20}, {4, 133}, {2, 0}, {33, 97}};
  for (const Sequence& sequence : sequences_) {
    total_q_ += sequence.queries;
    total_k_ += sequence.keys;
    max_blocks_ = std::max(max_blocks_, ceil_div(sequence.keys, shape.block_size));
  }
  config_.backend = OPENMSA_BACKEND_REFERENCE;
  config_.dtype = dtype;
  config_.num_heads_q = shape.num_heads_kv * shape.group_size;
  config_.num_heads_kv = shape.num_heads_kv;
  config_.head_dim = shape.head_dim;
  config_.index_dim = shape.index_dim;
  config_.block_size = shape.block_size;
  config_.topk = shape.topk;
  config_.num_init_blocks = shape.num_init_blocks;
  config_.num_local_blocks = shape.num_local_blocks;
  config_.page_size = shape.page_size;
  config_.max_batch = std::ssize(sequences_);
  config_.max_total_q = std::max(total_q_, total_k_);
  config_.max_seqlen_k = max_blocks_ * shape.block_size;
  if (has_fp8_keys) config_.kv_dtype = config_.index_dtype = OPENMSA_FLOAT8_E4M3;
  add_lengths();
  if (shape.page_size > 0) add_pages();
  add_inputs();
  add_results(data_, OPENMSA_FLOAT32);
  add_results(got_, dtype);
}

std::vector<openmsa_op> VerifyProblem::operations() const {
  if (config_.page_size > 0) {
    return {OPENMSA_OP_APPEND_KV,        OPENMSA_OP_BLOCK_SCORES,  OPENMSA_OP_TOPK,           OPENMSA_OP_SELECT_BLOCKS,
            OPENMSA_OP_SPARSE_ATTENTION, OPENMSA_OP_MSA_ATTENTION, OPENMSA_OP_DENSE_ATTENTION};
  }
  return {OPENMSA_OP_BLOCK_SCORES,     OPENMSA_OP_TOPK,
          OPENMSA_OP_SELECT_BLOCKS,    OPENMSA_OP_BLOCK_RECALL,
          OPENMSA_OP_SPARSE_ATTENTION, OPENMSA_OP_SPARSE_ATTENTION_BACKWARD,
          OPENMSA_OP_KL_LOSS,          OPENMSA_OP_MSA_ATTENTION,
          OPENMSA_OP_DENSE_ATTENTION,  OPENMSA_OP_DENSE_ATTENTION_BACKWARD};
}

std::int64_t VerifyProblem::visible_blocks(std::int64_t row) const {
  for (const Sequence& sequence : sequences_) {
    if (row < sequence.queries) {
      const std::int64_t position = sequence.keys - sequence.queries + row;
      return position < 0 ? 0 : position / config_.block_size + 1;
    }
    row -= sequence.queries;
  }
  return 0;
}

/// Every byte 0xff: NaN, and no index.
openmsa_tensor VerifyProblem::allocate(openmsa_dtype dtype, std::initializer_list<std::int64_t> shape) {
  const std::int64_t count = std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
  auto& memory = memory_.emplace_back(static_cast<std::size_t>(count) * openmsa_dtype_bytes(dtype), std::byte{0xff});
  return openmsa_contiguous(memory.data(), dtype, static_cast<std::int32_t>(shape.size()), shape.begin());
}

openmsa_tensor VerifyProblem::integers(const std::vector<std::int32_t>& values,
                                       std::initializer_list<std::int64_t> shape) {
  const openmsa_tensor tensor = allocate(OPENMSA_INT32, shape);
  std::copy(values.begin(), values.end(), static_cast<std::int32_t*>(tensor.data));
  return tensor;
}

openmsa_tensor VerifyProblem::random(std::initializer_list<std::int64_t> shape) {
  const openmsa_tensor tensor = allocate(config_.dtype, shape);
  std::normal_distribution<float> normal;
  core::visit_dtype(config_.dtype, [&]<class T>(T) {
    T* const begin = static_cast<T*>(tensor.data);
    std::generate(begin, begin + memory_.back().size() / sizeof(T),
                  [&] { return core::round_to<T>(normal(generator_)); });
  });
  return tensor;
}

void VerifyProblem::add_lengths() {
  const std::int64_t batch = std::ssize(sequences_);
  const auto keys = [&](std::size_t b) { return sequences_[b].keys; };
  data_.cu_seqlens_q =
      integers(prefix_sums(sequences_.size(), [&](std::size_t b) { return sequences_[b].queries; }), {batch + 1});
  keys_as_queries_ = integers(prefix_sums(sequences_.size(), keys), {batch + 1});
  if (config_.page_size == 0) data_.cu_seqlens_k = keys_as_queries_;
  std::vector<std::int32_t> lengths;
  for (const Sequence& sequence : sequences_) lengths.push_back(static_cast<std::int32_t>(sequence.keys));
  data_.seqlens_k = integers(lengths, {batch});
}

/// Pages in random order; some belong to nobody, the first of them too.
void VerifyProblem::add_pages() {
  const std::int64_t max_pages = config_.max_seqlen_k / config_.page_size;
  num_pages_ = 3;
  for (const Sequence& sequence : sequences_) num_pages_ += ceil_div(sequence.keys, config_.page_size);
  std::vector<std::int32_t> pages(static_cast<std::size_t>(num_pages_ - 1)), table;
  std::iota(pages.begin(), pages.end(), 1);
  std::shuffle(pages.begin(), pages.end(), generator_);
  auto next = pages.begin();
  for (const Sequence& sequence : sequences_) {
    const std::int64_t used = ceil_div(sequence.keys, config_.page_size);
    table.insert(table.end(), next, next + used);
    table.insert(table.end(), static_cast<std::size_t>(max_pages - used), -1);
    next += used;
  }
  data_.block_table = integers(table, {std::ssize(sequences_), max_pages});
}

void VerifyProblem::add_inputs() {
  data_.q = random({total_q_, config_.num_heads_q, config_.head_dim});
  data_.k = random({total_k_, config_.num_heads_kv, config_.head_dim});
  data_.v = random({total_k_, config_.num_heads_kv, config_.head_dim});
  data_.index_q = random({total_q_, config_.num_heads_kv, config_.index_dim});
  data_.index_k = random({total_k_, config_.index_dim});
  data_.d_o = random({total_q_, config_.num_heads_q, config_.head_dim});
}

void VerifyProblem::add_results(Tensors& to, openmsa_dtype dtype) {
  const std::int64_t heads_kv = config_.num_heads_kv, head_dim = config_.head_dim, index_dim = config_.index_dim;
  to.topk_indices = allocate(OPENMSA_INT32, {heads_kv, total_q_, config_.topk});
  to.block_scores = allocate(OPENMSA_FLOAT32, {heads_kv, total_q_, max_blocks_});
  to.o = allocate(dtype, {total_q_, config_.num_heads_q, head_dim});
  to.lse = allocate(OPENMSA_FLOAT32, {total_q_, config_.num_heads_q});
  if (config_.page_size > 0) {
    const bool is_fp8 = config_.kv_dtype == OPENMSA_FLOAT8_E4M3;
    const openmsa_dtype keys = is_fp8 ? OPENMSA_FLOAT8_E4M3 : config_.dtype;
    const std::int64_t page_size = config_.page_size, slots = num_pages_ * page_size;
    to.k_cache = allocate(keys, {num_pages_, page_size, heads_kv, head_dim});
    to.v_cache = allocate(keys, {num_pages_, page_size, heads_kv, head_dim});
    to.index_k_cache = allocate(keys, {num_pages_, page_size, index_dim});
    if (!is_fp8) return;
    to.k_scale = allocate(OPENMSA_FLOAT32, {heads_kv, slots});
    to.v_scale = allocate(OPENMSA_FLOAT32, {heads_kv, slots});
    to.index_k_scale = allocate(OPENMSA_FLOAT32, {slots});
    return;
  }
  to.d_q = allocate(dtype, {total_q_, config_.num_heads_q, head_dim});
  to.d_k = allocate(dtype, {total_k_, heads_kv, head_dim});
  to.d_v = allocate(dtype, {total_k_, heads_kv, head_dim});
  to.d_index_q = allocate(dtype, {total_q_, heads_kv, index_dim});
  to.d_index_k = allocate(dtype, {total_k_, index_dim});
  to.kl_loss = allocate(OPENMSA_FLOAT32, {1});
  to.block_recall = allocate(OPENMSA_FLOAT32, {heads_kv, total_q_});
  to.score_recall = allocate(OPENMSA_FLOAT32, {heads_kv, total_q_});
}

Tensors VerifyProblem::call(openmsa_op op, const Tensors& results) const {
  Tensors tensors = openmsa::tensors();
  for (const char* name : tensor_names()) {
    if (reads(config_, op, name)) at(tensors, name) = at(data_, name);
    if (writes(config_, op, name)) at(tensors, name) = at(results, name);
  }
  if (op == OPENMSA_OP_APPEND_KV) tensors.cu_seqlens_q = keys_as_queries_;
  return tensors;
}

}  // namespace openmsa::cli
