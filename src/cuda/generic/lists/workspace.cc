#include "cuda/generic/lists/workspace.h"

#include "cuda/generic/lists/list.h"

namespace openmsa::cuda::generic {

std::int64_t list_words(const ListCapacity& capacity) {
  if (capacity.topk == 0) return 0;
  return RowsInBatch::max_words(capacity.places, capacity.max_blocks, capacity.heads * capacity.total_blocks);
}

ListParams take_lists(core::Arena& arena, const ListCapacity& capacity) {
  const std::int64_t visits = capacity.places * capacity.topk, lists = capacity.heads * capacity.total_blocks;
  const std::int64_t parts = capacity.ranges * lists;
  const bool is_dense = capacity.topk == 0;
  ListParams p{};
  p.index = {arena.take<std::int32_t>(capacity.batch + 2), arena.take<std::int32_t>(capacity.batch + 1)};
  p.topk = static_cast<std::int32_t>(capacity.topk);
  p.max_lists = capacity.total_blocks;
  p.item_visits = is_dense ? kMaxListRows : kMostItemVisits;
  p.first_words = arena.take<std::int64_t>(is_dense ? 0 : capacity.batch + 1);
  p.bits = arena.take<std::uint32_t>(list_words(capacity));
  p.counts = arena.take<std::int32_t>(parts);
  p.begins = arena.take<std::int32_t>(is_dense ? 0 : parts);
  p.visits = arena.take<std::int32_t>(visits);
  p.items = arena.take<ListItem>(is_dense ? parts : ListItems::max_items(visits, parts));
  p.num_items = arena.take<std::int32_t>(1);
  p.next_item = arena.take<std::int32_t>(1);
  p.tickets = arena.take<std::int32_t>(lists);
  return p;
}

}  // namespace openmsa::cuda::generic
