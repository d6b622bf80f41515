#include "msa/bench/decode/check.h"

#include <algorithm>
#include <cstddef>
#include <set>
#include <stdexcept>
#include <string>

#include "msa/attend/layer_input.h"
#include "msa/verify/accuracy.h"

namespace openmsa::cli {
namespace {

constexpr int kCall = 0;  // the one that is checked

struct Row {
  std::int64_t sequence;
  std::int32_t token;  // of the sequence's queries
};

std::size_t row_bytes(const openmsa_tensor& tensor) {
  return static_cast<std::size_t>(tensor.strides[0]) * openmsa_dtype_bytes(tensor.dtype);
}

/// A query and the pages that it needs, copied to the host: a problem of one row for the reference backend.
class SampledRow {
 public:
  SampledRow(const DecodeProblem& problem, Row row)
      : problem_(problem),
        row_(row.sequence * problem.shape().queries + row.token),
        seqlen_k_(problem.seqlens_k()[row.sequence] - problem.shape().queries + row.token + 1),
        pages_(problem.pages(kCall, row.sequence)) {}

  std::int64_t num_blocks() const {
    const std::int32_t block_size = problem_.config().block_size;
    return (seqlen_k_ + block_size - 1) / block_size;
  }

  /// The kv_blocks chosen for the row, all heads.
  std::vector<std::int32_t> selection() const {
    const Config& config = problem_.config();
    const std::vector<std::int32_t> all = problem_.selection(kCall);
    std::vector<std::int32_t> result;
    for (std::int64_t head = 0; head < config.num_heads_kv; ++head) {
      const auto first = all.begin() + (head * config.max_total_q + row_) * config.topk;
      result.insert(result.end(), first, first + config.topk);
    }
    return result;
  }

  openmsa_tensor query(const openmsa_tensor& tensor) {
    openmsa_tensor result = tensor;
    result.data = copy(tensor, {row_});
    result.shape[0] = 1;
    return result;
  }

  /// Lengths, the table, and the logical `wanted` pages of the caches that `tensors` has; the table sends the other
  /// ones, which nothing reads, to the first.
  Tensors keys(const Tensors& tensors, const std::set<std::int64_t>& wanted) {
    std::vector<std::int64_t> physical;
    table_.assign(pages_.size(), 0);
    for (std::int64_t page : wanted) {
      table_[page] = static_cast<std::int32_t>(physical.size());
      physical.push_back(pages_[page]);
    }
    Tensors result = openmsa::tensors();
    result.seqlens_k = view(&seqlen_k_, {1});
    result.block_table = view(table_.data(), {1, std::ssize(table_)});
    for (TensorMember cache : {&Tensors::k_cache, &Tensors::v_cache, &Tensors::index_k_cache}) {
      if (!present(tensors.*cache)) continue;
      result.*cache = tensors.*cache;
      (result.*cache).data = copy(tensors.*cache, physical);
      (result.*cache).shape[0] = std::ssize(physical);
    }
    return result;
  }

  std::set<std::int64_t> all_pages() const {
    std::set<std::int64_t> result;
    for (std::int64_t page = 0; page < problem_.num_pages(seqlen_k_); ++page) result.insert(result.end(), page);
    return result;
  }

  std::set<std::int64_t> pages_of(const std::vector<std::int32_t>& blocks) const {
    const std::int64_t pages_per_block = problem_.config().block_size / problem_.config().page_size;
    std::set<std::int64_t> result;
    for (std::int64_t block : blocks) {
      for (std::int64_t page = block * pages_per_block; block >= 0 && page < (block + 1) * pages_per_block; ++page) {
        if (page < problem_.num_pages(seqlen_k_)) result.insert(page);
      }
    }
    return result;
  }

  Plan reference() const {
    Config config = problem_.config();
    config.backend = OPENMSA_BACKEND_REFERENCE;
    config.max_batch = config.max_total_q = 1;
    return Plan(config);
  }

 private:
  std::byte* copy(const openmsa_tensor& tensor, const std::vector<std::int64_t>& rows) {
    const std::size_t bytes = row_bytes(tensor);
    auto& memory = memory_.emplace_back(bytes * rows.size());
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const auto* from = static_cast<const std::byte*>(tensor.data) + bytes * static_cast<std::size_t>(rows[i]);
      problem_.device().copy(memory.data() + bytes * i, from, bytes);
    }
    return memory.data();
  }

  const DecodeProblem& problem_;
  std::int64_t row_;
  std::int32_t seqlen_k_;
  std::span<const std::int32_t> pages_;
  std::vector<std::int32_t> table_;
  std::list<std::vector<std::byte>> memory_;
};

/// The first query of the first sequence, the last of the last, and one between.
std::vector<Row> sampled_rows(const DecodeProblem& problem) {
  const std::int64_t batch = problem.config().max_batch;
  const std::int32_t queries = problem.shape().queries;
  return {{0, 0}, {batch / 2, queries / 2}, {batch - 1, queries - 1}};
}

void run(const Plan& plan, const DecodeProblem& problem, openmsa_op op) {
  const DeviceBuffer workspace(problem.device(), plan.workspace_bytes(op));
  problem.device().time([&] { plan.run(op, problem.tensors(op, kCall), workspace.workspace()); });
}

void check_selection(const DecodeProblem& problem) {
  const Config& config = problem.config();
  const Tensors all = problem.tensors(OPENMSA_OP_SELECT_BLOCKS, kCall);
  for (const Row& row : sampled_rows(problem)) {
    SampledRow sample(problem, row);
    const std::int64_t num_blocks = sample.num_blocks();
    std::vector<float> scores(static_cast<std::size_t>(config.num_heads_kv * num_blocks));
    Tensors tensors = sample.keys(all, sample.all_pages());
    tensors.index_q = sample.query(all.index_q);
    tensors.block_scores = view(scores.data(), {config.num_heads_kv, 1, num_blocks});
    Workspace workspace;
    sample.reference().run(OPENMSA_OP_BLOCK_SCORES, tensors, workspace);
    const std::vector<std::int32_t> chosen = sample.selection();
    for (std::int32_t head = 0; head < config.num_heads_kv; ++head) {
      if (is_best(config, scores.data() + head * num_blocks, num_blocks, chosen.data() + head * config.topk)) continue;
      throw std::runtime_error("selection is wrong: head " + std::to_string(head) + " of query " +
                               std::to_string(row.token) + " of sequence " + std::to_string(row.sequence) +
                               " misses a better kv_block");
    }
  }
}

/// What the reference backend makes of one row, over the selection that the problem holds or dense.
std::vector<float> expected_output(const DecodeProblem& problem, Row row, bool is_dense) {
  const Config& config = problem.config();
  const openmsa_op op = is_dense ? OPENMSA_OP_DENSE_ATTENTION : OPENMSA_OP_SPARSE_ATTENTION;
  const Tensors all = problem.tensors(op, kCall);
  SampledRow sample(problem, row);
  std::vector<std::int32_t> chosen = sample.selection();
  Tensors tensors = sample.keys(all, is_dense ? sample.all_pages() : sample.pages_of(chosen));
  tensors.q = sample.query(all.q);
  if (!is_dense) tensors.topk_indices = view(chosen.data(), {config.num_heads_kv, 1, config.topk});
  std::vector<float> output(static_cast<std::size_t>(config.num_heads_q * config.head_dim));
  tensors.o = view(output.data(), {1, config.num_heads_q, config.head_dim});
  Workspace workspace;
  sample.reference().run(op, tensors, workspace);
  return output;
}

void check_output(const DecodeProblem& problem, bool is_dense) {
  const Tensors all = problem.tensors(OPENMSA_OP_SPARSE_ATTENTION, kCall);
  OutputError error;
  for (const Row& row : sampled_rows(problem)) {
    const std::vector<float> expected = expected_output(problem, row, is_dense);
    const std::vector<double> got = to_doubles(SampledRow(problem, row).query(all.o));
    error.add(got, expected);
  }
  error.check(is_dense ? "dense" : "sparse", problem.config().dtype);
}

}  // namespace

void check_decode(const Plan& plan, const DecodeProblem& problem, bool with_dense) {
  run(plan, problem, OPENMSA_OP_SELECT_BLOCKS);
  check_selection(problem);
  run(plan, problem, OPENMSA_OP_SPARSE_ATTENTION);  // over the selection just checked
  check_output(problem, false);
  run(plan, problem, OPENMSA_OP_MSA_ATTENTION);
  check_selection(problem);
  check_output(problem, false);
  if (!with_dense) return;
  run(plan, problem, OPENMSA_OP_DENSE_ATTENTION);
  check_output(problem, true);
}

}  // namespace openmsa::cli
