// Keys in memory: contiguous rows or pages of a cache, with strides in bytes.
#pragma once

#include <cstdint>

#include "cuda/common/batch_view.h"
#include "cuda/common/math.h"
#include "cuda/common/tensor_view.h"

namespace openmsa::cuda::sm80 {

/// Rows are looked up in groups of so many: the smallest page holds one.
inline constexpr int kGroupKeys = 16;

/// k, v or index_k: [rows][heads][dim], or [pages][page_size][heads][dim].
struct KeyTensor {
  const char* data;
  std::int64_t page_stride;  // of a cache; all strides in bytes
  std::int64_t token_stride;
  std::int64_t head_stride;
};

/// The keys of one sequence.
struct SequenceKeys {
  const BatchView* batch;
  std::int32_t sequence;
  std::int32_t k_row;  // first row of contiguous keys
  std::int32_t end;    // keys [0, end) may be read

  /// Page of a key; 0 where keys are contiguous. A key past `end` has the page of another, to have an address.
  OPENMSA_DEVICE std::int32_t page(std::int32_t key) const {
    if (batch->page_size == 0 || key >= end) return 0;
    return batch->page(sequence, key >> log2_of(batch->page_size));
  }

  /// Place of a key in its page, or among contiguous rows.
  OPENMSA_DEVICE std::int32_t entry(std::int32_t key) const {
    return batch->page_size == 0 ? k_row + key : key & (batch->page_size - 1);
  }

  /// Row of a key of which one page lookup is enough for its group of kGroupKeys: those follow token_stride apart.
  OPENMSA_DEVICE const char* row(const KeyTensor& keys, std::int32_t head, std::int32_t key) const {
    return row(keys, head, key, page(key));
  }
  OPENMSA_DEVICE const char* row(const KeyTensor& keys, std::int32_t head, std::int32_t key, std::int32_t page) const {
    return keys.data + head * keys.head_stride + page * keys.page_stride + entry(key) * keys.token_stride;
  }

  /// Number of a key among all tokens, in the order in which their scales lie.
  OPENMSA_DEVICE std::int64_t token(std::int32_t page, std::int32_t key) const {
    return std::int64_t{page} * batch->page_size + entry(key);
  }
};

}  // namespace openmsa::cuda::sm80
