// The sequences of a call as kernels see them: device pointers to lengths, pages and positions.
#pragma once

#include <cstdint>

#include "cuda/common/device.h"
#include "cuda/common/math.h"
#include "cuda/common/shard.h"
#include "cuda/common/tensor_view.h"

namespace openmsa::cuda {

/// The last b in [0, count) with offsets[b] <= value.
OPENMSA_DEVICE std::int32_t find_sequence(IntVector offsets, std::int32_t count, std::int32_t value) {
  std::int32_t low = 0, high = count;
  while (high - low > 1) {
    const std::int32_t middle = (low + high) / 2;
    if (offsets.at(middle) <= value) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

/// One sequence: rows [q_row, q_row + seqlen_q) of the query tensors, seqlen_k keys from row k_row (contiguous).
struct SequenceView {
  std::int32_t q_row;
  std::int32_t seqlen_q;
  std::int32_t k_row;
  std::int32_t seqlen_k;

  OPENMSA_DEVICE bool operator==(const SequenceView& other) const {
    return q_row == other.q_row && seqlen_q == other.seqlen_q && k_row == other.k_row && seqlen_k == other.seqlen_k;
  }
};

struct BatchView {
  std::int32_t batch;
  std::int32_t total_q;
  std::int32_t total_k;    // of a single contiguous sequence without cu_seqlens_k
  IntVector cu_seqlens_q;  // absent: one sequence
  IntVector cu_seqlens_k;  // contiguous keys
  IntVector seqlens_k;     // paged keys
  IntVector block_table;   // paged keys; stride between entries of a row
  std::int64_t table_row;  // stride between rows of block_table
  std::int32_t page_size;  // 0: contiguous
  std::int32_t block_size;
  Shard shard;  // whose pages block_table lists

  /// Sequence b; b = batch stands for the padding rows after the last sequence, which see no key.
  template <class Load = Ld>
  OPENMSA_DEVICE SequenceView sequence(std::int32_t b, Load load = {}) const {
    SequenceView s{0, total_q, 0, 0};
    if (cu_seqlens_q.data != nullptr) {
      s.q_row = load(cu_seqlens_q, b);
      s.seqlen_q = (b < batch ? load(cu_seqlens_q, b + 1) : total_q) - s.q_row;
    } else if (b > 0) {
      s.q_row = total_q;
      s.seqlen_q = 0;
    }
    if (b == batch) return s;
    if (seqlens_k.data != nullptr) {
      s.seqlen_k = load(seqlens_k, b);
    } else if (cu_seqlens_k.data != nullptr) {
      s.k_row = load(cu_seqlens_k, b);
      s.seqlen_k = load(cu_seqlens_k, b + 1) - s.k_row;
    } else {
      s.seqlen_k = total_k;
    }
    return s;
  }

  /// Key position of a query row; -1 for padding rows.
  OPENMSA_DEVICE std::int32_t position_of_row(std::int32_t row) const {
    return position_in(cu_seqlens_q.data == nullptr ? 0 : find_sequence(cu_seqlens_q, batch + 1, row), row);
  }

  /// Key position of a row of sequence b.
  OPENMSA_DEVICE std::int32_t position_in(std::int32_t b, std::int32_t row) const {
    if (b == batch) return -1;
    const SequenceView view = sequence(b);
    return view.seqlen_k - view.seqlen_q + row - view.q_row;
  }

  /// Entry `entry` of a sequence's row of block_table.
  OPENMSA_DEVICE std::int32_t table(std::int32_t b, std::int32_t entry) const {
    return block_table.data[b * table_row + entry * block_table.stride];
  }
  /// Where page `logical` of sequence b lies, which is in the shard.
  OPENMSA_DEVICE std::int32_t page(std::int32_t b, std::int32_t logical) const {
    if (shard.is_whole()) return table(b, logical);
    const int log2_pages = log2_of(block_size) - log2_of(page_size);  // of a kv_block
    const std::int32_t within = logical & ((1 << log2_pages) - 1);
    return table(b, ((logical >> log2_pages) / shard.count << log2_pages) + within);
  }
};

}  // namespace openmsa::cuda
