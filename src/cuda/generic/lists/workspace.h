// The workspace of lists, carved from an Arena: with memory for a run, without for its size.
#pragma once

#include "core/arena.h"
#include "cuda/generic/lists/params.h"

namespace openmsa::cuda::generic {

/// What the list batches of a call need at most.
struct ListCapacity {
  std::int64_t batch;         // sequences
  std::int64_t heads;         // KV heads of a batch
  std::int64_t places;        // rows * heads of a batch
  std::int64_t ranges;        // of a batch's rows
  std::int64_t topk;          // visits of a row, at most; 0: dense attention
  std::int64_t max_blocks;    // kv_blocks of the longest sequence
  std::int64_t total_blocks;  // kv_blocks of all sequences
};

/// Most kv_blocks that sequences with total_k keys in all can have.
constexpr std::int64_t most_blocks(std::int64_t total_k, std::int64_t batch, std::int64_t block_size) {
  return (total_k + batch * (block_size - 1)) / block_size;
}

/// Bits of a batch, in words.
std::int64_t list_words(const ListCapacity& capacity);

/// The pointers of ListParams, max_lists and item_visits, which cut no dense list.
ListParams take_lists(core::Arena& arena, const ListCapacity& capacity);

}  // namespace openmsa::cuda::generic
