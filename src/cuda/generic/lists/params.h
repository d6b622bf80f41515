// Reverse lists: for every kv_block the query rows that visit it, in ascending order, cut into work items. What
// training kernels with kv_blocks in the outer loop work off; sums over a list come out the same every time.
//
// The work of a call goes in *list batches*: some query rows and KV heads at a time. From the selection of a batch's
// rows a bitmap is made, a bit per (KV head, kv_block, query row): setting bits does not depend on the order, and reading
// them one after the other gives every list in ascending order, a kv_block that a query names twice once.
#pragma once

#include <cstdint>

#include "cuda/common/query_tile.h"
#include "cuda/common/tensor_view.h"

namespace openmsa::cuda::generic {

/// Items hold whole tiles of the kernels, which are at most this large.
inline constexpr std::int32_t kListTileVisits = 64;
/// Visits of an item of a selection, at most: few enough to share hot kv_blocks out.
inline constexpr std::int32_t kMostItemVisits = 512;
/// Query rows of a list batch, at most.
inline constexpr std::int32_t kMaxListRows = 1 << 16;

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

  /// Query row of visit `i` of an item; -1: there is none.
  OPENMSA_DEVICE std::int32_t visited_row(const ListItem& item, std::int32_t i) const {
    if (i >= item.count) return -1;
    return visits == nullptr ? item.begin + i : visits[item.begin + i];
  }

  /// Place of a row and KV head of the batch among all of them.
  OPENMSA_DEVICE std::int64_t place(std::int32_t head, std::int32_t row) const {
    return std::int64_t{head - first_head} * rows + (row - first_row);
  }
};

/// How lists are made. A batch has a list per KV head and kv_block of all sequences: list number
/// (head - first_head) * kv_blocks of all sequences + kv_block counted over all sequences. Its rows are cut into ranges,
/// [first_row + r * range_rows, first_row + (r + 1) * range_rows); items do not cross them and come range by range, so
/// that the q, d_o and sums of a range stay in the L2 cache while its items are worked off. Inside a range the first
/// items of all lists come first, then all second ones, and so on: items of one list, which add up their sums in turns,
/// are not worked off side by side.
struct ListParams {
  BatchView batch;
  BatchIndex index;            // of index_batch; tiles are not used
  SelectionView topk_indices;  // absent: dense attention
  std::int32_t topk;
  std::int32_t first_row;  // as in ListBatch
  std::int32_t rows;
  std::int32_t first_head;
  std::int32_t heads;
  std::int32_t range_rows;   // a multiple of 128
  std::int32_t item_visits;  // of an item, at most: a multiple of kListTileVisits

  // Workspace.
  std::int64_t max_lists;     // of a KV head, of every batch of the call
  std::int64_t* first_words;  // [batch + 1] first word of each sequence's bits among those of a KV head, total
  std::uint32_t* bits;        // zero before and after
  std::int32_t* counts;       // [ranges][heads * max_lists] visits
  std::int32_t* begins;       // [ranges][heads * max_lists] the first of them among all of the batch
  std::int32_t* visits;       // [heads * rows * topk]
  ListItem* items;
  std::int32_t* num_items;  // [1]
  std::int32_t* next_item;  // [1]
  std::int32_t* tickets;    // [heads * max_lists]

  OPENMSA_DEVICE bool is_dense() const { return topk_indices.data == nullptr; }
  OPENMSA_DEVICE std::int32_t ranges() const { return (rows + range_rows - 1) / range_rows; }
  OPENMSA_DEVICE ListBatch work() const {
    return {first_row, rows, first_head, heads, is_dense() ? nullptr : visits, items, num_items, next_item, tickets};
  }
};

}  // namespace openmsa::cuda::generic
