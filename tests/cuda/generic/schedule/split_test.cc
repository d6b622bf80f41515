// The schedule's invariants, on a host build of the functions that the kernels call: every chosen pair is worked off
// once, and everything stays within the bounds that the workspace was sized for.
#include "cuda/generic/schedule/split.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "core/plan.h"
#include "support/selections.h"
#include "support/shapes.h"

namespace openmsa::test {
namespace {

using namespace cuda;
using namespace cuda::generic;

IntVector int_vector(const Buffer& buffer) {
  const openmsa_tensor tensor = buffer.view();
  return {static_cast<const std::int32_t*>(tensor.data), tensor.strides[0]};
}

/// A query row and a kv_block of its sequence.
using Pair = std::pair<std::int64_t, std::int64_t>;

/// One KV head's schedule over all tiles, phase by phase as in schedule.cuh.
class HostSchedule {
 public:
  HostSchedule(const Layer& layer, std::int32_t head, std::int32_t tile_queries, std::int32_t shared_threshold,
               std::int32_t log2_group_size)
      : layer_(layer), random_(7) {
    params_.batch.batch = static_cast<std::int32_t>(layer.shape.seqlens_q.size());
    params_.batch.total_q = static_cast<std::int32_t>(layer.total_q());
    params_.batch.cu_seqlens_q = int_vector(layer.tensors.at("cu_seqlens_q"));
    params_.batch.cu_seqlens_k = int_vector(layer.tensors.at("cu_seqlens_k"));
    params_.batch.block_size = layer.shape.block_size;
    const openmsa_tensor indices = layer.tensors.at("topk_indices").view();
    params_.topk_indices = {static_cast<std::int32_t*>(indices.data),
                            {indices.strides[0], indices.strides[1], indices.strides[2]}};
    params_.topk = params_.work.slots = layer.shape.topk;
    params_.shared_threshold = shared_threshold;
    params_.log2_group_size = log2_group_size;
    params_.work.head = head;
    params_.work.tile_queries = tile_queries;
    params_.work.most_passes = 3;
    index_batch();
    for (std::int32_t number = 0; number < tiles_.back(); ++number) split_pairs(number);
    make_items();
    place_visits();
  }

  std::vector<std::vector<SharedBlock>> shared;  // of each tile
  std::vector<KvOuterPair> pairs;
  std::vector<Visit> visits;
  std::vector<KvOuterItem> items;

  QueryTile tile(std::int32_t number) const {
    return find_tile(params_.batch, params_.index, number, params_.work.tile_queries);
  }
  std::int64_t num_blocks() const { return blocks_.back(); }
  std::int32_t passes() const { return params_.work.passes(blocks_.back()); }
  std::int32_t pass_of(std::int32_t tile) const { return tile * passes() / params_.work.max_tiles; }

 private:
  void index_batch() {
    tiles_ = {0};
    blocks_ = {0};
    for (std::int32_t b = 0; b <= params_.batch.batch; ++b) {
      const SequenceView view = params_.batch.sequence(b);
      tiles_.push_back(tiles_.back() + core::ceil_div(view.seqlen_q, params_.work.tile_queries));
      if (b < params_.batch.batch)
        blocks_.push_back(blocks_.back() + core::ceil_div(view.seqlen_k, params_.batch.block_size));
    }
    params_.index = {tiles_.data(), blocks_.data()};
    params_.work.max_tiles = tiles_.back();
    list_counts_.assign(static_cast<std::size_t>(passes() * num_blocks()), 0);
  }

  void split_pairs(std::int32_t number) {
    const QueryTile found = tile(number);
    const std::int32_t capacity = params_.work.tile_queries * params_.topk;
    const std::size_t table = std::size_t{1} << TileSelection::log2_table_for(capacity);
    std::vector<std::int32_t> keys(table, TileSelection::kNone);
    std::vector<std::uint32_t> members(table);
    std::vector<std::int32_t> places(static_cast<std::size_t>(capacity)), kv_outer(places.size());
    std::vector<SharedBlock> shared_entries(places.size());
    std::int32_t num_shared = 0;
    TileSelection s{.entries = found.count * params_.topk,
                    .topk = params_.topk,
                    .log2_table = TileSelection::log2_table_for(capacity),
                    .keys = keys.data(),
                    .members = members.data(),
                    .places = places.data(),
                    .kv_outer = kv_outer.data(),
                    .shared = shared_entries.data(),
                    .num_shared = &num_shared};
    std::vector<int> order(static_cast<std::size_t>(s.entries));  // that of threads: any
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random_);
    for (const int e : order) s.enter(e, selected_block(params_, params_.work, found, e / s.topk, e % s.topk));
    for (const int e : order) s.decide(e, found.position, params_.batch.block_size, params_.shared_threshold);
    const ListNumbers lists(params_, params_.work, found, number);
    for (const int e : order) s.reserve(e, lists, list_counts_.data());
    std::map<int, SharedBlock> ranked;
    for (int u = 0; u < num_shared; ++u) {
      EXPECT_TRUE(ranked.emplace(s.rank(u), shared_entries[static_cast<std::size_t>(u)]).second);
    }
    for (const int e : order) {
      if (kv_outer[static_cast<std::size_t>(e)] == TileSelection::kNone) continue;
      pairs.push_back(kv_outer_pair(params_.work, found, s, lists, number, e));
    }
    std::vector<SharedBlock>& shared_of_tile = shared.emplace_back();
    for (const auto& [rank, entry] : ranked) {
      EXPECT_EQ(rank, static_cast<int>(shared_of_tile.size()));
      shared_of_tile.push_back(entry);
    }
  }

  void make_items() {
    list_offsets_.resize(list_counts_.size());
    std::exclusive_scan(list_counts_.begin(), list_counts_.end(), list_offsets_.begin(), 0);
    for (std::int32_t pass = 0; pass < passes(); ++pass) {
      for (std::int32_t among_all = 0; among_all < blocks_.back(); ++among_all) {
        const auto first = list_counts_.begin() + among_all * passes();
        const KvOuterBlock list(std::accumulate(first, first + passes(), 0), params_.log2_group_size);
        const std::int32_t sequence = find_sequence({blocks_.data(), 1}, params_.batch.batch, among_all);
        const std::int32_t block = among_all - blocks_[static_cast<std::size_t>(sequence)];
        const std::int32_t end = list.first_of_pass(pass + 1, passes());
        for (std::int32_t i = list.first_of_pass(pass, passes()); i < end; ++i) {
          items.push_back(list.item(i, sequence, block, list_offsets_[static_cast<std::size_t>(among_all * passes())]));
        }
      }
    }
  }

  void place_visits() {
    visits.assign(pairs.size(), {-1, -1});
    for (const KvOuterPair& pair : pairs) {
      visits.at(static_cast<std::size_t>(list_offsets_[static_cast<std::size_t>(pair.list)] + pair.rank)) = pair.visit;
    }
  }

  const Layer& layer_;
  std::mt19937_64 random_;
  ScheduleParams params_{};
  std::vector<std::int32_t> tiles_, blocks_, list_counts_, list_offsets_;
};

/// What the selection asks for: visible kv_blocks, each once.
std::set<Pair> chosen_pairs(const Layer& layer, std::int32_t head) {
  const Buffer& indices = layer.tensors.at("topk_indices");
  std::set<Pair> result;
  for (std::int64_t row = 0; row < layer.total_q(); ++row) {
    for (std::int64_t slot = 0; slot < layer.shape.topk; ++slot) {
      const auto block = static_cast<std::int64_t>(indices.at({head, row, slot}));
      if (block >= 0 && block < layer.visible_blocks(row)) result.emplace(row, block);
    }
  }
  return result;
}

void expect_invariants(const Layer& layer, std::int32_t head, std::int32_t tile_queries, std::int32_t threshold) {
  const HostSchedule schedule(layer, head, tile_queries, threshold, tile_queries == 32 ? 1 : 4);
  std::set<Pair> done;
  const auto work_off = [&](std::int64_t row, std::int64_t block) {
    EXPECT_TRUE(done.emplace(row, block).second) << "query " << row << ", kv_block " << block << " twice";
  };
  for (std::size_t number = 0; number < schedule.shared.size(); ++number) {
    const QueryTile tile = schedule.tile(static_cast<std::int32_t>(number));
    std::int32_t last = -1;
    for (const SharedBlock& entry : schedule.shared[number]) {
      EXPECT_LT(last, entry.block);
      last = entry.block;
      EXPECT_EQ(std::uint64_t{entry.members} >> tile.count, 0u) << "a member outside the tile";
      for (std::int32_t x = 0; x < tile.count; ++x) {
        if (entry.members >> x & 1) work_off(tile.q_row + x, entry.block);
      }
    }
  }
  std::map<std::int64_t, std::set<std::int32_t>> slots;  // of each query row
  std::set<std::int32_t> visited;
  std::map<std::pair<std::int32_t, std::int32_t>, std::int32_t> last_pass;  // of each kv_block
  for (const KvOuterItem& item : schedule.items) {
    std::int32_t first_pass = schedule.passes(), &last = last_pass[{item.sequence, item.block}];
    const std::int32_t before = last;
    EXPECT_TRUE(item.count >= 1 && item.count <= kItemVisits + 64) << item.count;
    for (std::int32_t i = item.begin; i < item.begin + item.count; ++i) {
      EXPECT_TRUE(visited.insert(i).second) << "visit " << i << " twice";
      const Visit visit = schedule.visits.at(static_cast<std::size_t>(i));
      const std::int32_t pass = schedule.pass_of(visit.slot / tile_queries / layer.shape.topk);
      first_pass = std::min(first_pass, pass);
      last = std::max(last, pass);
      work_off(visit.q_row, item.block);
      EXPECT_EQ(static_cast<std::size_t>(item.sequence), layer.sequence_of(visit.q_row));
      EXPECT_LE((item.block + 1) * layer.shape.block_size, layer.position(visit.q_row) + 1) << "needs a causal mask";
      EXPECT_TRUE(slots[visit.q_row].insert(visit.slot / tile_queries % layer.shape.topk).second)
          << "slot " << visit.slot;
    }
    EXPECT_LE(before, first_pass) << "kv_block " << item.block << " goes back to earlier queries";
  }
  EXPECT_EQ(visited.size(), schedule.visits.size());
  EXPECT_EQ(done, chosen_pairs(layer, head));
  for (const auto& [row, used] : slots) {
    EXPECT_EQ(*used.rbegin() + 1, static_cast<std::int32_t>(used.size())) << "gaps between the slots of query " << row;
  }
  const std::int64_t capacity = static_cast<std::int64_t>(schedule.shared.size()) * tile_queries * layer.shape.topk;
  EXPECT_LE(static_cast<std::int64_t>(schedule.items.size()), schedule.num_blocks() + capacity / kItemVisits + 1);
}

LayerShape schedule_shape(std::int32_t topk) {
  return {.num_heads_q = 2,
          .head_dim = 8,
          .index_dim = 8,
          .block_size = 8,
          .topk = topk,
          .seqlens_q = {70, 1, 0, 300, 2, 33, 5},
          .seqlens_k = {70, 259, 20, 600, 0, 97, 3},
          .padding_q = 3};
}

class Schedule : public testing::TestWithParam<std::int32_t> {
 protected:
  /// For tiles of every size and thresholds that send all, some and no past kv_blocks to q_outer.
  static void expect_all_invariants(const Layer& layer) {
    for (const std::int32_t tile_queries : {8, 16, 32}) {
      for (const std::int32_t threshold : {1, 2, tile_queries / 2, tile_queries + 1}) {
        SCOPED_TRACE(testing::Message() << "tiles of " << tile_queries << ", threshold " << threshold);
        for (std::int32_t head = 0; head < 2; ++head) expect_invariants(layer, head, tile_queries, threshold);
        if (HasFailure()) return;
      }
    }
  }
};
INSTANTIATE_TEST_SUITE_P(Topk, Schedule, testing::Values(1, 5, 16, 64), testing::PrintToStringParamName());

TEST_P(Schedule, OfRandomSelections) {
  Layer layer = make_layer(schedule_shape(GetParam()));
  expect_all_invariants(layer.add({{"topk_indices", random_selection(layer, 1)}}));
}

TEST_P(Schedule, OfClusteredSelections) {
  Layer layer = make_layer(schedule_shape(GetParam()));
  expect_all_invariants(layer.add({{"topk_indices", clustered_selection(layer, 1)}}));
}

TEST_P(Schedule, OfKvBlocksThatAreNamedTwiceOrDoNotExist) {
  Layer layer = make_layer(schedule_shape(GetParam()));
  Buffer indices(OPENMSA_INT32, {2, layer.total_q(), GetParam()});
  std::mt19937_64 random(2);
  for (std::int64_t i = 0; i < indices.size(); ++i) indices.set(i, static_cast<double>(random() % 20) - 3);
  expect_all_invariants(layer.add({{"topk_indices", indices}}));
}

TEST_P(Schedule, OfNothing) {
  Layer layer = make_layer(schedule_shape(GetParam()));
  Buffer indices(OPENMSA_INT32, {2, layer.total_q(), GetParam()});
  indices.fill(-1);
  expect_all_invariants(layer.add({{"topk_indices", indices}}));
}

/// A list far longer than a work item.
TEST_P(Schedule, OfOneHotBlock) {
  Layer layer = make_layer(schedule_shape(GetParam()));
  Buffer indices(OPENMSA_INT32, {2, layer.total_q(), GetParam()});
  indices.fill(-1);
  for (std::int64_t row = 0; row < layer.total_q(); ++row) indices.set({0, row, 0}, 3);
  expect_all_invariants(layer.add({{"topk_indices", indices}}));
}

TEST(SelectedBlock, IsVisibleAndInTheShard) {
  std::vector<std::int32_t> indices = {4, 1, 0, 9, 3, -1};
  ScheduleParams params{};
  params.topk_indices = {indices.data(), {6, 6, 1}};
  params.topk = 6;
  params.batch.block_size = 64;
  const QueryTile tile{.sequence = 0, .q_row = 0, .count = 1, .position = 4 * 64 + 5, .view = {}};
  const auto selected = [&](Shard shard) {
    params.batch.shard = shard;
    std::vector<std::int32_t> blocks;
    for (int slot = 0; slot < params.topk; ++slot) {
      blocks.push_back(selected_block(params, params.work, tile, 0, slot));
    }
    return blocks;
  };
  EXPECT_EQ(selected({1, 0}), (std::vector<std::int32_t>{4, 1, 0, -1, 3, -1}));
  EXPECT_EQ(selected({3, 1}), (std::vector<std::int32_t>{4, 1, -1, -1, -1, -1}));
  EXPECT_EQ(selected({3, 2}), (std::vector<std::int32_t>(6, -1)));
}

TEST(BatchView, KnowsThePositionOfEveryRow) {
  const Layer layer = make_layer(schedule_shape(1));
  BatchView batch{};
  batch.batch = static_cast<std::int32_t>(layer.shape.seqlens_q.size());
  batch.total_q = static_cast<std::int32_t>(layer.total_q());
  batch.cu_seqlens_q = int_vector(layer.tensors.at("cu_seqlens_q"));
  batch.cu_seqlens_k = int_vector(layer.tensors.at("cu_seqlens_k"));
  std::int32_t row = 0;
  for (std::size_t b = 0; b < layer.shape.seqlens_q.size(); ++b) {
    const std::int64_t before = layer.shape.seqlens_k[b] - layer.shape.seqlens_q[b];
    for (std::int64_t t = 0; t < layer.shape.seqlens_q[b]; ++t, ++row) {
      EXPECT_EQ(batch.position_of_row(row), before + t) << "sequence " << b;
    }
  }
  for (; row < batch.total_q; ++row) EXPECT_EQ(batch.position_of_row(row), -1) << "padding row " << row;
}

}  // namespace
}  // namespace openmsa::test
