// Rows, bits and items of a list batch, as plain functions: the kernels call them with a thread or a warp per list,
// tests on the host.
#pragma once

#include "cuda/generic/lists/params.h"

namespace openmsa::cuda::generic {

/// Query rows [begin, end) of a sequence that lie in a list batch, and where their bits lie.
struct RowsInBatch {
  static constexpr std::int32_t kWordRows = 32;
  static constexpr std::int32_t kPieceRows = 128;  // 16 bytes, read and cleared together
  static constexpr std::int32_t kPieceWords = kPieceRows / kWordRows;

  std::int32_t begin;
  std::int32_t end;
  std::int32_t position;  // of row `begin` in the sequence; may be negative
  std::int32_t blocks;    // kv_blocks that the last row sees: the sequence's first ones
  std::int32_t
      first_piece;  // pieces of the batch's rows, [first_piece, end_piece), that hold the bits of each kv_block
  std::int32_t end_piece;

  OPENMSA_DEVICE RowsInBatch(const SequenceView& view, std::int32_t first_row, std::int32_t rows,
                             std::int32_t block_size) {
    begin = view.q_row > first_row ? view.q_row : first_row;
    end = least(view.q_row + view.seqlen_q, first_row + rows);
    if (end < begin) end = begin;
    position = view.seqlen_k - view.seqlen_q + begin - view.q_row;
    const std::int32_t last = position + end - begin - 1;
    blocks = end > begin && last >= 0 ? last / block_size + 1 : 0;
    first_piece = (begin - first_row) / kPieceRows;
    end_piece = end > begin ? (end - first_row + kPieceRows - 1) / kPieceRows : first_piece;
  }

  /// Words of each kv_block. All bits of a KV head take
  ///   sum over sequences of words() * blocks  <=  rows / 32 * (most kv_blocks of a sequence) + 8 * (kv_blocks of all)
  /// words: a sequence has less than two pieces beside those that its rows fill, and the rows of all are at most `rows`.
  OPENMSA_DEVICE std::int32_t words() const { return (end_piece - first_piece) * kPieceWords; }
  static constexpr std::int64_t max_words(std::int64_t rows, std::int64_t max_blocks, std::int64_t all_blocks) {
    return (rows * max_blocks + kWordRows - 1) / kWordRows + 2 * kPieceWords * all_blocks;
  }

  /// The first of the rows that sees the kv_block's first key; end where none does.
  OPENMSA_DEVICE std::int32_t first_to_see(std::int32_t block, std::int32_t block_size) const {
    if (block >= blocks) return end;
    const std::int32_t needed = block * block_size - position;
    return needed > 0 ? begin + needed : begin;
  }

 private:
  static OPENMSA_DEVICE std::int32_t least(std::int32_t a, std::int32_t b) { return a < b ? a : b; }
};

/// Items of a list in one range: as few as hold its visits, of even size but for the last.
struct ListItems {
  std::int32_t count;        // visits
  std::int32_t item_visits;  // of each item but the last
  std::int32_t items;

  OPENMSA_DEVICE ListItems(std::int32_t count, std::int32_t most_visits) : count(count) {
    const std::int32_t shares = ceil_div(count, most_visits);
    item_visits = count == 0 ? kListTileVisits : ceil_div(ceil_div(count, shares), kListTileVisits) * kListTileVisits;
    items = ceil_div(count, item_visits);
  }

  /// Bound over `lists` lists of a selection with `visits` in all, however few visits an item may have.
  static constexpr std::int64_t max_items(std::int64_t visits, std::int64_t lists) {
    return visits / kListTileVisits + (visits < lists ? visits : lists);
  }

 private:
  static OPENMSA_DEVICE std::int32_t ceil_div(std::int32_t a, std::int32_t b) { return (a + b - 1) / b; }
};

OPENMSA_DEVICE RowsInBatch rows_in_batch(const ListParams& p, std::int32_t sequence) {
  return RowsInBatch(p.batch.sequence(sequence), p.first_row, p.rows, p.batch.block_size);
}

/// What a list is of.
struct ListPlace {
  std::int32_t head;
  std::int32_t sequence;
  std::int32_t block;
};

OPENMSA_DEVICE ListPlace find_list(const ListParams& p, std::int32_t number) {
  const std::int32_t all = p.index.blocks[p.batch.batch], among_all = number % all;
  const std::int32_t sequence = find_sequence({p.index.blocks, 1}, p.batch.batch, among_all);
  return {p.first_head + number / all, sequence, among_all - p.index.blocks[sequence]};
}

/// Lists of the batch.
OPENMSA_DEVICE std::int32_t num_lists(const ListParams& p) { return p.heads * p.index.blocks[p.batch.batch]; }

/// Bits of a kv_block, from those of rows.first_piece on.
OPENMSA_DEVICE std::uint32_t* block_bits(const ListParams& p, const ListPlace& place, const RowsInBatch& rows) {
  return p.bits + (place.head - p.first_head) * p.first_words[p.batch.batch] + p.first_words[place.sequence] +
         std::int64_t{place.block} * rows.words();
}

/// The bit of a query row that has chosen a kv_block.
struct SelectedBit {
  std::uint32_t* word;  // nullptr: the slot is unused, or names what the row does not see
  std::uint32_t mask;
};

OPENMSA_DEVICE SelectedBit selected_bit(const ListParams& p, std::int32_t head, std::int32_t q_row, std::int32_t slot) {
  const std::int32_t block = p.topk_indices.row(head, q_row)[slot * p.topk_indices.strides[2]];
  const std::int32_t sequence =
      p.batch.cu_seqlens_q.data == nullptr ? 0 : find_sequence(p.batch.cu_seqlens_q, p.batch.batch + 1, q_row);
  if (block < 0 || sequence == p.batch.batch) return {nullptr, 0};
  const RowsInBatch rows = rows_in_batch(p, sequence);
  if (q_row < rows.first_to_see(block, p.batch.block_size)) return {nullptr, 0};
  const std::int32_t bit = q_row - p.first_row - rows.first_piece * RowsInBatch::kPieceRows;
  return {block_bits(p, {head, sequence, block}, rows) + bit / RowsInBatch::kWordRows,
          std::uint32_t{1} << bit % RowsInBatch::kWordRows};
}

/// Rows of dense attention that see a list's kv_block, [begin, begin + count) of a range.
struct DenseRows {
  std::int32_t begin;
  std::int32_t count;

  OPENMSA_DEVICE DenseRows(const ListParams& p, const ListPlace& place, std::int32_t range) {
    const RowsInBatch rows = rows_in_batch(p, place.sequence);
    const std::int32_t first = p.first_row + range * p.range_rows, last = first + p.range_rows;
    const std::int32_t seen = rows.first_to_see(place.block, p.batch.block_size);
    begin = seen > first ? seen : first;
    count = (rows.end < last ? rows.end : last) - begin;
    if (count < 0) count = 0;
  }
};

/// Items of a list in all ranges before `range`.
OPENMSA_DEVICE std::int32_t items_before(const ListParams& p, std::int32_t list, std::int32_t range) {
  const std::int64_t lists = num_lists(p);
  std::int32_t items = 0;
  for (std::int32_t r = 0; r < range; ++r) items += ListItems(p.counts[r * lists + list], p.item_visits).items;
  return items;
}

/// Item `part` of a list in a range, whose visits begin at `first_visit`; `order`: of part 0.
OPENMSA_DEVICE ListItem list_item(const ListPlace& place, const ListItems& items, std::int32_t list, std::int32_t part,
                                  std::int32_t first_visit, std::int32_t order) {
  const std::int32_t begin = part * items.item_visits, rest = items.count - begin;
  return {
      place.head, place.sequence, place.block, first_visit + begin, rest < items.item_visits ? rest : items.item_visits,
      list,       order + part};
}

}  // namespace openmsa::cuda::generic
