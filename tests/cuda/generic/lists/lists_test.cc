// Reverse lists, on a host build of the functions that the kernels call: every pair that a batch's rows have chosen is in
// one item, lists ascend, and everything stays within the bounds that the workspace was sized for.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "cuda/generic/lists/list.h"
#include "support/run.h"
#include "support/selections.h"

namespace openmsa::test {
namespace {

using namespace cuda;
using namespace cuda::generic;

IntVector int_vector(const Buffer& buffer) {
  const openmsa_tensor tensor = buffer.view();
  return {static_cast<const std::int32_t*>(tensor.data), tensor.strides[0]};
}

BatchView batch_view(const Layer& layer) {
  BatchView batch{};
  batch.batch = static_cast<std::int32_t>(layer.shape.seqlens_q.size());
  batch.total_q = static_cast<std::int32_t>(layer.total_q());
  batch.total_k = static_cast<std::int32_t>(layer.total_k());
  batch.cu_seqlens_q = int_vector(layer.tensors.at("cu_seqlens_q"));
  batch.cu_seqlens_k = int_vector(layer.tensors.at("cu_seqlens_k"));
  batch.block_size = layer.shape.block_size;
  return batch;
}

/// Rows [first_row, first_row + rows) of all KV heads, in ranges.
struct Chunk {
  std::int32_t first_row, rows, range_rows, item_visits;
};

/// The lists of one chunk, phase by phase as in lists.cuh.
class HostLists {
 public:
  /// Of dense attention where there is no selection.
  HostLists(const Layer& layer, Chunk chunk, const Buffer* topk_indices) {
    p_.batch = batch_view(layer);
    p_.first_row = chunk.first_row;
    p_.rows = chunk.rows;
    p_.range_rows = chunk.range_rows;
    p_.item_visits = chunk.item_visits;
    p_.heads = layer.shape.num_heads_kv;
    p_.topk = layer.shape.topk;
    blocks_ = {0};
    for (std::int32_t b = 0; b < p_.batch.batch; ++b) {
      const std::int32_t seqlen_k = p_.batch.sequence(b).seqlen_k, block = p_.batch.block_size;
      blocks_.push_back(blocks_.back() + (seqlen_k + block - 1) / block);
    }
    p_.index = {nullptr, blocks_.data()};
    counts_.resize(static_cast<std::size_t>(p_.ranges()) * static_cast<std::size_t>(num_lists(p_)));
    p_.counts = counts_.data();
    if (topk_indices != nullptr) {
      const openmsa_tensor indices = topk_indices->view();
      p_.topk_indices = {static_cast<std::int32_t*>(indices.data),
                         {indices.strides[0], indices.strides[1], indices.strides[2]}};
      index_rows();
      set_bits();
    }
    for (std::int32_t range = 0; range < p_.ranges(); ++range) place_items(range);
  }

  std::vector<std::int32_t> visits;
  std::vector<ListItem> items;
  std::int64_t words() const { return static_cast<std::int64_t>(bits_.size()); }
  std::int64_t lists() const { return num_lists(p_); }

 private:
  void index_rows() {
    first_words_ = {0};
    for (std::int32_t b = 0; b < p_.batch.batch; ++b) {
      const RowsInBatch rows = rows_in_batch(p_, b);
      first_words_.push_back(first_words_.back() + std::int64_t{rows.words()} * rows.blocks);
    }
    bits_.assign(static_cast<std::size_t>(first_words_.back() * p_.heads), 0);
    p_.first_words = first_words_.data();
    p_.bits = bits_.data();
  }

  void set_bits() {
    for (std::int32_t head = 0; head < p_.heads; ++head) {
      for (std::int32_t row = p_.first_row; row < p_.first_row + p_.rows; ++row) {
        for (std::int32_t slot = 0; slot < p_.topk; ++slot) {
          const SelectedBit bit = selected_bit(p_, head, row, slot);
          if (bit.word == nullptr) continue;
          ASSERT_TRUE(bit.word >= bits_.data() && bit.word < bits_.data() + bits_.size());
          *bit.word |= bit.mask;
        }
      }
    }
  }

  /// Appends the rows of a list's bits in a range.
  void write_visits(const ListPlace& place, std::int32_t range) {
    constexpr std::int32_t kPieceRows = RowsInBatch::kPieceRows, kWordRows = RowsInBatch::kWordRows;
    const RowsInBatch rows = rows_in_batch(p_, place.sequence);
    if (place.block >= rows.blocks) return;
    const std::int32_t pieces = p_.range_rows / kPieceRows;
    const std::int32_t begin = std::max(rows.first_piece, range * pieces) * kPieceRows;
    const std::int32_t end = std::min(rows.end_piece, (range + 1) * pieces) * kPieceRows;
    for (std::int32_t i = begin; i < end; ++i) {
      const std::int32_t bit = i - rows.first_piece * kPieceRows;
      if ((block_bits(p_, place, rows)[bit / kWordRows] >> bit % kWordRows & 1) != 0) {
        visits.push_back(p_.first_row + i);
      }
    }
  }

  /// Visits of a list in a range, which become its items there.
  std::vector<ListItem> items_of(std::int32_t list, std::int32_t range) {
    const ListPlace place = find_list(p_, list);
    const DenseRows dense(p_, place, range);
    const auto first = static_cast<std::int32_t>(visits.size());
    if (!p_.is_dense()) write_visits(place, range);
    const std::int32_t count = p_.is_dense() ? dense.count : static_cast<std::int32_t>(visits.size()) - first;
    p_.counts[range * num_lists(p_) + list] = count;
    const ListItems parts(count, p_.item_visits);
    const std::int32_t visit = p_.is_dense() ? dense.begin : first, order = items_before(p_, list, range);
    std::vector<ListItem> result;
    for (std::int32_t i = 0; i < parts.items; ++i) result.push_back(list_item(place, parts, list, i, visit, order));
    return result;
  }

  /// The items of a range, part by part.
  void place_items(std::int32_t range) {
    std::vector<std::vector<ListItem>> parts;
    for (std::int32_t list = 0; list < num_lists(p_); ++list) {
      const std::vector<ListItem> own = items_of(list, range);
      parts.resize(std::max(parts.size(), own.size()));
      for (std::size_t i = 0; i < own.size(); ++i) parts[i].push_back(own[i]);
    }
    for (const std::vector<ListItem>& part : parts) items.insert(items.end(), part.begin(), part.end());
  }

  ListParams p_{};
  std::vector<std::int32_t> blocks_, counts_;
  std::vector<std::int64_t> first_words_;
  std::vector<std::uint32_t> bits_;
};

/// A query row, KV head and kv_block of the row's sequence.
using Visit = std::tuple<std::int64_t, std::int64_t, std::int64_t>;

bool is_in(const Chunk& chunk, std::int64_t row) {
  return row >= chunk.first_row && row < chunk.first_row + chunk.rows;
}

/// What the chunk's rows ask for: visible kv_blocks, each once.
std::set<Visit> chosen(const Layer& layer, const Chunk& chunk) {
  const Buffer& indices = layer.tensors.at("topk_indices");
  std::set<Visit> result;
  for (std::int64_t head = 0; head < layer.shape.num_heads_kv; ++head) {
    for (std::int64_t row = chunk.first_row; row < chunk.first_row + chunk.rows; ++row) {
      for (std::int64_t slot = 0; slot < layer.shape.topk; ++slot) {
        const auto block = static_cast<std::int64_t>(indices.at({head, row, slot}));
        if (block >= 0 && block < layer.visible_blocks(row)) result.emplace(row, head, block);
      }
    }
  }
  return result;
}

std::set<Visit> visible(const Layer& layer, const Chunk& chunk) {
  std::set<Visit> result;
  for (std::int64_t head = 0; head < layer.shape.num_heads_kv; ++head) {
    for (std::int64_t row = chunk.first_row; row < chunk.first_row + chunk.rows; ++row) {
      for (std::int64_t block = 0; block < layer.visible_blocks(row); ++block) result.emplace(row, head, block);
    }
  }
  return result;
}

/// Items of a kv_block follow one another in order, no other has their ticket, and inside a range first items come
/// before second ones. range_of(item): the range that its rows lie in.
template <class RangeOf>
void expect_order(const std::vector<ListItem>& items, const RangeOf& range_of) {
  std::map<std::int32_t, std::vector<ListItem>> of_ticket;
  std::map<std::pair<std::int32_t, std::int32_t>, std::int32_t> parts;  // of a ticket in a range
  std::set<std::tuple<std::int32_t, std::int32_t, std::int32_t>> blocks;
  std::int32_t last_range = 0, last_part = 0;
  for (const ListItem& item : items) {
    std::vector<ListItem>& own = of_ticket[item.ticket];
    EXPECT_EQ(item.order, static_cast<std::int32_t>(own.size()));
    own.push_back(item);
    EXPECT_EQ(std::tie(item.head, item.sequence, item.block), std::tie(own[0].head, own[0].sequence, own[0].block));
    if (own.size() == 1) {
      EXPECT_TRUE(blocks.emplace(item.head, item.sequence, item.block).second) << "two tickets of a kv_block";
    }
    const std::int32_t range = range_of(item), part = parts[{item.ticket, range}]++;
    EXPECT_LE(std::tie(last_range, last_part), std::tie(range, part));
    last_range = range;
    last_part = part;
  }
}

void expect_lists(const Layer& layer, const Chunk& chunk) {
  const HostLists lists(layer, chunk, &layer.tensors.at("topk_indices"));
  const auto range_of = [&](const ListItem& item) {
    return (lists.visits.at(static_cast<std::size_t>(item.begin)) - chunk.first_row) / chunk.range_rows;
  };
  std::set<Visit> done;
  for (const ListItem& item : lists.items) {
    ASSERT_TRUE(item.count >= 1 && item.count <= chunk.item_visits) << item.count;
    std::int32_t last_row = -1;
    for (std::int32_t i = item.begin; i < item.begin + item.count; ++i) {
      const std::int32_t row = lists.visits.at(static_cast<std::size_t>(i));
      EXPECT_LT(last_row, row) << "rows of an item ascend";
      last_row = row;
      EXPECT_EQ((row - chunk.first_row) / chunk.range_rows, range_of(item));
      EXPECT_EQ(layer.sequence_of(row), static_cast<std::size_t>(item.sequence));
      EXPECT_TRUE(done.emplace(row, item.head, item.block).second) << "row " << row << " twice";
    }
  }
  EXPECT_EQ(done, chosen(layer, chunk));
  EXPECT_EQ(done.size(), lists.visits.size());
  expect_order(lists.items, range_of);

  const std::int64_t places = std::int64_t{chunk.rows} * layer.shape.num_heads_kv, visits = std::ssize(done);
  const std::int64_t parts = ceil_div(chunk.rows, chunk.range_rows) * lists.lists();
  EXPECT_LE(std::ssize(lists.items), visits / chunk.item_visits + std::min(visits, parts));
  EXPECT_LE(lists.words(), RowsInBatch::max_words(places, layer.max_blocks(), lists.lists()));
}

/// All rows at once, in parts that begin and end anywhere, one row, and padding alone.
std::vector<Chunk> chunks_of(const Layer& layer) {
  const auto total = static_cast<std::int32_t>(layer.total_q());
  std::vector<Chunk> chunks = {{0, total, 1024, 512},
                               {0, total, 1024, 64},
                               {0, total, 128, 128},
                               {total / 2, 1, 128, 64},
                               {total - 1, 1, 128, 64}};
  for (std::int32_t first = 0; first < total; first += 177) {
    chunks.push_back({first, std::min(177, total - first), 128, 64});
  }
  return chunks;
}

LayerShape ragged(std::int32_t topk) {
  return {.num_heads_q = 2,
          .head_dim = 8,
          .index_dim = 8,
          .block_size = 8,
          .topk = topk,
          .seqlens_q = {70, 1, 0, 300, 2, 33, 5, 1, 1, 1},
          .seqlens_k = {70, 259, 20, 600, 0, 97, 3, 1, 8, 9},
          .padding_q = 3};
}

class Lists : public testing::TestWithParam<std::int32_t> {
 protected:
  void expect_all_lists(const Buffer& topk_indices) {
    layer_.tensors["topk_indices"] = topk_indices;
    for (const Chunk& chunk : chunks_of(layer_)) {
      SCOPED_TRACE(testing::Message() << "rows from " << chunk.first_row << ", " << chunk.rows << " of them");
      expect_lists(layer_, chunk);
      if (HasFailure()) return;
    }
  }
  Buffer indices() const { return Buffer(OPENMSA_INT32, {2, layer_.total_q(), GetParam()}); }

  Layer layer_ = make_layer(ragged(GetParam()));
};
INSTANTIATE_TEST_SUITE_P(Topk, Lists, testing::Values(1, 5, 16, 64), testing::PrintToStringParamName());

TEST_P(Lists, OfRandomSelections) { expect_all_lists(random_selection(layer_, 1)); }

TEST_P(Lists, OfClusteredSelections) { expect_all_lists(clustered_selection(layer_, 1)); }

TEST_P(Lists, OfKvBlocksThatAreNamedTwiceOrDoNotExist) {
  Buffer random = indices();
  std::mt19937_64 generator(2);
  for (std::int64_t i = 0; i < random.size(); ++i) random.set(i, static_cast<double>(generator() % 20) - 3);
  expect_all_lists(random);
}

TEST_P(Lists, OfNothing) {
  Buffer none = indices();
  none.fill(-1);
  expect_all_lists(none);
}

TEST_P(Lists, OfDenseAttentionHoldEveryVisibleKey) {
  for (const Chunk& chunk : chunks_of(layer_)) {
    const HostLists lists(layer_, chunk, nullptr);
    std::set<Visit> done;
    for (const ListItem& item : lists.items) {
      for (std::int32_t row = item.begin; row < item.begin + item.count; ++row) {
        EXPECT_TRUE(is_in(chunk, row));
        EXPECT_EQ((row - chunk.first_row) / chunk.range_rows, (item.begin - chunk.first_row) / chunk.range_rows);
        EXPECT_TRUE(done.emplace(row, item.head, item.block).second);
      }
    }
    EXPECT_EQ(done, visible(layer_, chunk));
    expect_order(lists.items, [&](const ListItem& item) { return (item.begin - chunk.first_row) / chunk.range_rows; });
    const std::int64_t parts = ceil_div(chunk.rows, chunk.range_rows) * lists.lists();
    EXPECT_LE(std::ssize(lists.items), std::ssize(done) / chunk.item_visits + parts);
  }
}

/// Lists of every length around one item and several.
TEST(LongLists, AreCutIntoEvenItems) {
  LayerShape shape = ragged(2);
  shape.seqlens_q = {3000};
  shape.seqlens_k = {3000};
  Layer layer = make_layer(shape);
  Buffer indices(OPENMSA_INT32, {2, layer.total_q(), 2});
  for (const std::int64_t visits : {1, 511, 512, 513, 1023, 1024, 1025, 1537, 2990}) {
    indices.fill(-1);
    for (std::int64_t i = 0; i < visits; ++i) indices.set({0, layer.total_q() - visits + i, i % 2}, 1);
    layer.tensors["topk_indices"] = indices;
    for (const std::int32_t range_rows : {128, 1024, 4096}) {
      expect_lists(layer, {0, 3003, range_rows, 512});
      expect_lists(layer, {100, 2900, range_rows, 192});
    }
    const auto count = static_cast<std::int32_t>(visits);
    const ListItems items(count, 512);
    EXPECT_EQ(items.items, (count + 511) / 512);
    EXPECT_LT(items.item_visits - ceil_div(count, items.items), kListTileVisits);
  }
}

}  // namespace
}  // namespace openmsa::test
