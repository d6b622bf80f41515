#include "msa/bench/prefill/check.h"

#include <set>
#include <stdexcept>
#include <string>

#include "msa/verify/accuracy.h"

namespace openmsa::cli {
namespace {

/// A query and the keys that it sees, copied to the host: a problem of one row for the reference backend.
class SampledRow {
 public:
  SampledRow(const PrefillProblem& problem, std::int64_t row) : problem_(problem), row_(row) {
    std::int64_t q_end = 0;
    for (const auto& [queries, keys] : problem.sequences()) {
      q_end += queries;
      num_keys_ = keys - (q_end - 1 - row);
      if (row < q_end) break;
      first_key_ += keys;
    }
  }

  std::int64_t num_keys() const { return num_keys_; }

  openmsa_tensor query(const openmsa_tensor& tensor) { return copy(tensor, row_, 1); }
  openmsa_tensor keys(const openmsa_tensor& tensor) { return copy(tensor, first_key_, num_keys_); }

  Plan plan() const {
    Config config = problem_.config();
    config.backend = OPENMSA_BACKEND_REFERENCE;
    config.max_batch = config.max_total_q = 1;
    config.max_seqlen_k = num_keys_;
    return Plan(config);
  }

 private:
  openmsa_tensor copy(const openmsa_tensor& tensor, std::int64_t first, std::int64_t count) {
    openmsa_tensor result = tensor;
    result.data = memory_.emplace_back(problem_.rows(tensor, first, count)).data();
    result.shape[0] = count;
    return result;
  }

  const PrefillProblem& problem_;
  std::int64_t row_;
  std::int64_t first_key_ = 0;
  std::int64_t num_keys_ = 0;
  std::list<std::vector<std::byte>> memory_;
};

/// First, last and a few between.
std::set<std::int64_t> sampled_rows(const PrefillProblem& problem) {
  constexpr std::int64_t kParts = 5;
  const std::int64_t last = problem.config().max_total_q - 1;
  std::set<std::int64_t> rows;
  for (std::int64_t part = 0; part <= kParts; ++part) rows.insert(last * part / kParts);
  return rows;
}

/// What the reference backend makes of one row.
std::vector<double> expected_output(const PrefillProblem& problem, std::int64_t row, bool is_dense) {
  const Config& config = problem.config();
  const Tensors all = problem.tensors(OPENMSA_OP_SPARSE_ATTENTION);
  SampledRow sample(problem, row);
  Tensors tensors = openmsa::tensors();
  tensors.q = sample.query(all.q);
  tensors.k = sample.keys(all.k);
  tensors.v = sample.keys(all.v);
  std::vector<float> output(static_cast<std::size_t>(config.num_heads_q * config.head_dim));
  tensors.o = view(output.data(), {1, config.num_heads_q, config.head_dim});
  std::vector<std::int32_t> selection = problem.selection(row);
  if (!is_dense) tensors.topk_indices = view(selection.data(), {config.num_heads_kv, 1, config.topk});
  Workspace workspace;
  sample.plan().run(is_dense ? OPENMSA_OP_DENSE_ATTENTION : OPENMSA_OP_SPARSE_ATTENTION, tensors, workspace);
  return {output.begin(), output.end()};
}

}  // namespace

void check_prefill_selection(const PrefillProblem& problem) {
  const Config& config = problem.config();
  const Tensors all = problem.tensors(OPENMSA_OP_SELECT_BLOCKS);
  for (std::int64_t row : sampled_rows(problem)) {
    SampledRow sample(problem, row);
    const std::int64_t num_blocks = (sample.num_keys() + config.block_size - 1) / config.block_size;
    std::vector<float> scores(static_cast<std::size_t>(config.num_heads_kv * num_blocks));
    Tensors tensors = openmsa::tensors();
    tensors.index_q = sample.query(all.index_q);
    tensors.index_k = sample.keys(all.index_k);
    tensors.block_scores = view(scores.data(), {config.num_heads_kv, 1, num_blocks});
    Workspace workspace;
    sample.plan().run(OPENMSA_OP_BLOCK_SCORES, tensors, workspace);
    const std::vector<std::int32_t> chosen = problem.selection(row);
    for (std::int32_t head = 0; head < config.num_heads_kv; ++head) {
      if (is_best(config, scores.data() + head * num_blocks, num_blocks, chosen.data() + head * config.topk)) continue;
      throw std::runtime_error("selection is wrong: head " + std::to_string(head) + " of query " + std::to_string(row) +
                               " misses a better kv_block");
    }
  }
}

void check_prefill_output(const PrefillProblem& problem, bool is_dense) {
  const Tensors all = problem.tensors(OPENMSA_OP_SPARSE_ATTENTION);
  OutputError error;
  for (std::int64_t row : sampled_rows(problem)) {
    SampledRow sample(problem, row);
    const std::vector<double> expected = expected_output(problem, row, is_dense);
    const std::vector<double> got = to_doubles(sample.query(all.o));
    error.add(got, expected);
  }
  error.check(is_dense ? "dense" : "sparse", problem.config().dtype);
}

}  // namespace openmsa::cli
