// One query row of a problem that is too large to judge as a whole, wherever its tensors lie.
#pragma once

#include <list>
#include <openmsa/openmsa.hpp>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "judge/copy.h"
#include "judge/errors.h"

namespace openmsa::judge {

/// What a query sees of its sequence's keys.
struct VisibleKeys {
  std::int64_t count;
  std::int64_t first_row = 0;             // contiguous keys: of the sequence
  std::span<const std::int32_t> pages{};  // paged keys: of the sequence
};

/// The row and its keys, copied to the host as a problem of one query for the reference backend.
class SampledRow {
 public:
  /// `tensors` are those of an operation on contiguous tensors of `config`, with results in them.
  SampledRow(const Config& config, const Tensors& tensors, Copy copy, std::int64_t row, const VisibleKeys& keys);

  /// What is wrong with the row's topk_indices, and in which head; "" when they are right.
  std::string selection_fault();

  /// Adds the row's o, of attention over its topk_indices or dense, and what the reference makes of it.
  void add_to(RelativeError& error, bool is_dense);

 private:
  Plan reference() const;
  openmsa_tensor rows(const openmsa_tensor& tensor, const std::vector<std::int64_t>& numbers);
  openmsa_tensor chosen_blocks();
  std::set<std::int64_t> pages_of(const openmsa_tensor* chosen) const;
  Tensors keys(std::span<const char* const> names, const std::set<std::int64_t>& pages);

  const Config config_;
  const Tensors tensors_;
  const Copy copy_;
  const std::int64_t row_;
  VisibleKeys keys_;
  std::int32_t seqlen_k_;
  std::list<std::vector<std::byte>> memory_;
};

/// "selection is wrong: query 3 ..." for the first fault. Throws std::runtime_error.
void require_no_fault(const std::string& row, const std::string& fault);

/// Throws std::runtime_error, with the text of `what` attention, where the error of o is more than `dtype` allows.
void require_close(const RelativeError& error, const char* what, openmsa_dtype dtype);

}  // namespace openmsa::judge
