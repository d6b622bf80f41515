#include "judge/sampled_row.h"

#include <numeric>
#include <stdexcept>
#include <utility>

#include "judge/selection.h"
#include "judge/tolerance.h"

namespace openmsa::judge {
namespace {

bool is_present(const openmsa_tensor& tensor) { return tensor.rank != 0; }

std::size_t row_bytes(const openmsa_tensor& tensor) {
  return static_cast<std::size_t>(tensor.strides[0]) * openmsa_dtype_bytes(tensor.dtype);
}

/// Contiguous rows of int32 or float as the judge reads them.
template <class T>
std::vector<T> converted(const openmsa_tensor& tensor) {
  const std::vector<double> values = to_doubles(tensor);
  return {values.begin(), values.end()};
}

}  // namespace

SampledRow::SampledRow(const Config& config, const Tensors& tensors, Copy copy, std::int64_t row,
                       const VisibleKeys& keys)
    : config_(config),
      tensors_(tensors),
      copy_(std::move(copy)),
      row_(row),
      keys_(keys),
      seqlen_k_(static_cast<std::int32_t>(keys.count)) {}

Plan SampledRow::reference() const {
  Config config = config_;
  config.backend = OPENMSA_BACKEND_REFERENCE;
  config.max_batch = config.max_total_q = 1;
  config.max_seqlen_k = keys_.count;
  return Plan(config);
}

/// Entries of the first dimension, side by side on the host.
openmsa_tensor SampledRow::rows(const openmsa_tensor& tensor, const std::vector<std::int64_t>& numbers) {
  const std::size_t bytes = row_bytes(tensor);
  auto& memory = memory_.emplace_back(bytes * numbers.size());
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    const auto* from = static_cast<const std::byte*>(tensor.data) + bytes * static_cast<std::size_t>(numbers[i]);
    copy_(memory.data() + bytes * i, from, bytes);
  }
  openmsa_tensor result = tensor;
  result.data = memory.data();
  result.shape[0] = std::ssize(numbers);
  return result;
}

/// [num_heads_kv, 1, topk] of the row.
openmsa_tensor SampledRow::chosen_blocks() {
  const openmsa_tensor& all = tensors_.topk_indices;
  auto& memory = memory_.emplace_back(static_cast<std::size_t>(all.shape[0] * all.shape[2]) * sizeof(std::int32_t));
  auto* const to = reinterpret_cast<std::int32_t*>(memory.data());
  for (std::int64_t head = 0; head < all.shape[0]; ++head) {
    const auto* from = static_cast<const std::int32_t*>(all.data) + head * all.strides[0] + row_ * all.strides[1];
    copy_(to + head * all.shape[2], from, static_cast<std::size_t>(all.shape[2]) * sizeof(std::int32_t));
  }
  return view(to, {all.shape[0], 1, all.shape[2]});
}

/// Logical pages of the chosen kv_blocks that have visible keys; of all kv_blocks where `chosen` is null.
std::set<std::int64_t> SampledRow::pages_of(const openmsa_tensor* chosen) const {
  std::set<std::int64_t> result;
  if (keys_.pages.empty()) return result;
  const std::int64_t last = (keys_.count - 1) / config_.page_size, per_block = config_.block_size / config_.page_size;
  if (chosen == nullptr) {
    for (std::int64_t page = 0; page <= last; ++page) result.insert(result.end(), page);
    return result;
  }
  for (const std::int64_t block : converted<std::int64_t>(*chosen)) {
    for (std::int64_t page = block * per_block; block >= 0 && page < (block + 1) * per_block; ++page) {
      if (page <= last) result.insert(page);
    }
  }
  return result;
}

/// The keys in `names`: contiguous ones whole, of caches the logical `pages`; the table sends the other ones, which
/// nothing reads, to the first.
Tensors SampledRow::keys(std::span<const char* const> names, const std::set<std::int64_t>& pages) {
  Tensors result = openmsa::tensors();
  std::vector<std::int64_t> numbers;
  if (keys_.pages.empty()) {
    numbers.resize(static_cast<std::size_t>(keys_.count));
    std::iota(numbers.begin(), numbers.end(), keys_.first_row);
  } else {
    auto& memory = memory_.emplace_back(keys_.pages.size() * sizeof(std::int32_t), std::byte{0});
    auto* const table = reinterpret_cast<std::int32_t*>(memory.data());
    for (const std::int64_t page : pages) {
      table[page] = static_cast<std::int32_t>(numbers.size());
      numbers.push_back(keys_.pages[static_cast<std::size_t>(page)]);
    }
    result.block_table = view(table, {1, std::ssize(keys_.pages)});
    result.seqlens_k = view(&seqlen_k_, {1});
  }
  for (const char* name : names) {
    const openmsa_tensor& from = at(tensors_, name);
    if (is_present(from)) at(result, name) = rows(from, numbers);
  }
  return result;
}

std::string SampledRow::selection_fault() {
  constexpr const char* kIndexKeys[] = {"index_k", "index_k_cache"};
  const std::int64_t heads = config_.num_heads_kv, topk = config_.topk,
                     blocks = ceil_div(keys_.count, config_.block_size);
  Workspace workspace;
  Tensors scoring = keys(kIndexKeys, pages_of(nullptr));
  scoring.index_q = rows(tensors_.index_q, {row_});
  std::vector<float> scores(static_cast<std::size_t>(heads * blocks));
  scoring.block_scores = view(scores.data(), {heads, 1, blocks});
  reference().run(OPENMSA_OP_BLOCK_SCORES, scoring, workspace);

  Tensors choosing = openmsa::tensors();
  choosing.block_scores = scoring.block_scores;
  choosing.seqlens_k = view(&seqlen_k_, {1});
  std::vector<std::int32_t> expected(static_cast<std::size_t>(heads * topk));
  choosing.topk_indices = view(expected.data(), {heads, 1, topk});
  reference().run(OPENMSA_OP_TOPK, choosing, workspace);

  const auto got = converted<std::int64_t>(chosen_blocks()), right = converted<std::int64_t>(choosing.topk_indices);
  const std::vector<double> all_scores(scores.begin(), scores.end());
  for (std::int64_t head = 0; head < heads; ++head) {
    const auto part = [&](const auto& of_heads, std::int64_t count) {
      return std::span(of_heads).subspan(static_cast<std::size_t>(head * count), static_cast<std::size_t>(count));
    };
    const std::string fault =
        judge::selection_fault(part(got, topk), part(right, topk), part(all_scores, blocks), tolerance(config_).score);
    if (!fault.empty()) return "head " + std::to_string(head) + " " + fault;
  }
  return "";
}

void SampledRow::add_to(RelativeError& error, bool is_dense) {
  constexpr const char* kKeysAndValues[] = {"k", "v", "k_cache", "v_cache"};
  const openmsa_tensor chosen = is_dense ? openmsa_tensor{} : chosen_blocks();
  Tensors call = keys(kKeysAndValues, pages_of(is_dense ? nullptr : &chosen));
  call.q = rows(tensors_.q, {row_});
  call.topk_indices = chosen;
  std::vector<float> o(static_cast<std::size_t>(config_.num_heads_q * config_.head_dim));
  call.o = view(o.data(), {1, config_.num_heads_q, config_.head_dim});
  Workspace workspace;
  reference().run(is_dense ? OPENMSA_OP_DENSE_ATTENTION : OPENMSA_OP_SPARSE_ATTENTION, call, workspace);
  error.add(to_doubles(rows(tensors_.o, {row_})), to_doubles(call.o));
}

void require_no_fault(const std::string& row, const std::string& fault) {
  if (!fault.empty()) throw std::runtime_error("selection is wrong: " + row + ", " + fault);
}

void require_close(const RelativeError& error, const char* what, openmsa_dtype dtype) {
  const double allowed = tolerance(dtype).o;
  if (error.value() <= allowed) return;  // also refuses NaN
  throw std::runtime_error(std::string(what) + " attention is wrong: relative error " + std::to_string(error.value()) +
                           ", allowed " + std::to_string(allowed));
}

}  // namespace openmsa::judge
