// Decode steps on random paged caches in a backend's memory: a few query tokens of every sequence at the end of its
// keys.
#pragma once

#include <cstdint>
#include <openmsa/openmsa.hpp>
#include <span>
#include <vector>

#include "msa/bench/problem_memory.h"

namespace openmsa::cli {

struct DecodeShape {
  std::int64_t context = 1;  // keys of every sequence; of the longest one that there may be when lengths are mixed
  std::int32_t queries = 1;  // query tokens per sequence
  bool has_mixed_lengths = false;
  double agreement = 0;  // correlation of the query vectors of a sequence
};

/// The shortest of mixed lengths.
inline constexpr std::int64_t kShortestMixed = 1024;

/// Several calls, as the layers of a model make them one after the other: each with queries, selection and pages of its
/// own, so that it finds its keys in memory and not in the processor's caches. Where the pages of two calls are more
/// than any cache holds, every other call shares them.
class DecodeProblem {
 public:
  /// `config` says how many sequences there are (max_batch), and the element types of the caches.
  DecodeProblem(Device& device, const Config& config, const DecodeShape& shape, std::uint64_t seed);

  /// Of the caches of such a problem in the memory of the host; queries and results are small beside them.
  static std::uint64_t bytes_on_host(const Config& config, const DecodeShape& shape, std::uint64_t seed);

  Device& device() const { return memory_.device(); }
  const Config& config() const { return config_; }
  const DecodeShape& shape() const { return shape_; }
  const std::vector<std::int32_t>& seqlens_k() const { return seqlens_k_; }
  std::int64_t num_pages(std::int32_t seqlen_k) const;

  int num_calls() const { return num_calls_; }
  /// What `op` takes in a call, in the backend's memory; all calls write the same o.
  Tensors tensors(openmsa_op op, int call) const;
  /// Copies on the host: the page numbers of a sequence, and topk_indices of all rows.
  std::span<const std::int32_t> pages(int call, std::int64_t sequence) const;
  std::vector<std::int32_t> selection(int call) const;

 private:
  void choose_counts();
  void deal_pages();
  openmsa_tensor queries(std::int32_t heads, std::int32_t dim);

  ProblemMemory memory_;
  Config config_;
  DecodeShape shape_;
  std::vector<std::int32_t> seqlens_k_;
  std::vector<std::int32_t> block_table_;  // [num_sets_ * max_batch, pages_per_row_]; -1 where nothing is read
  std::int64_t pages_per_row_;
  std::int64_t pages_per_set_ = 0;
  int num_sets_ = 1;  // of pages
  int num_calls_ = 1;
  Tensors data_ = openmsa::tensors();  // of all calls
};

/// Shapes and capacities of a problem; the rest as in `config`.
Config fit_to(Config config, const DecodeShape& shape);

}  // namespace openmsa::cli
