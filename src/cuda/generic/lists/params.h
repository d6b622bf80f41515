// Reverse lists: for every kv_block the query rows that visit it, in ascending order, cut into work items. What
// training kernels with kv_blocks in the outer loop work off; sums over a list come out the same every time.
#pragma once

#include <cstdint>

#include "cuda/common/query_tile.h"
#include "cuda/common/tensor_view.h"

namespace openmsa::cuda::generic {

/// Visits of one kv_block and KV head: query rows visits[begin], ..., visits[begin + count - 1], ascending; without a
/// list (dense attention) query rows begin, ..., begin + count - 1. All of them see the kv_block's first key.
struct ListItem {
  std::int32_t head;      // KV head
  std::int32_t sequence;  // of the batch
  std::int32_t block;     // kv_block of the sequence
  std::int32_t begin;
  std::int32_t count;
  std::int32_t ticket;  // of its kv_block and head among those of the batch
  std::int32_t order;   // among the items of its kv_block and head: items add up their sums in this order
};

/// Lists of some query rows and KV heads of a call. All pointers are workspace.
struct ListBatch {
  std::int32_t first_row;   // query rows [first_row, first_row + rows)
  std::int32_t rows;        //
  std::int32_t first_head;  // KV heads [first_head, first_head + heads)
  std::int32_t heads;       //

  const std::int32_t* visits;     // nullptr: dense attention
  const ListItem* items;          // the order in which they should be begun
  const std::int32_t* num_items;  // [1]
  std::int32_t* next_item;        // [1] zero before: the next item that a CTA takes
  std::int32_t* tickets;          // zero before: items of each kv_block and head whose sums have been added

  /// Place of a row and KV head of the batch among all of them.
  OPENMSA_DEVICE std::int64_t place(std::int32_t head, std::int32_t row) const {
    return std::int64_t{head - first_head} * rows + (row - first_row);
  }
};

}  // namespace openmsa::cuda::generic
