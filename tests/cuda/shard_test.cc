// How a shard's keys are counted, on a host build of what kernels call, against a walk over all keys.
#include "cuda/common/shard.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "cuda/common/batch_view.h"

namespace openmsa::test {
namespace {

using cuda::BatchView;
using cuda::SeenKeys;
using cuda::Shard;

constexpr std::int32_t kBlock = 64, kBlocks = 11;

class OneShard : public testing::TestWithParam<Shard> {
 protected:
  /// Those of the keys [0, keys) that are held.
  static std::int32_t walk(std::int32_t keys) {
    std::int32_t held = 0;
    for (std::int32_t key = 0; key < keys; ++key) held += key / kBlock % GetParam().count == GetParam().rank;
    return held;
  }
};
INSTANTIATE_TEST_SUITE_P(Shards, OneShard,
                         testing::Values(Shard{}, Shard{2, 0}, Shard{2, 1}, Shard{3, 0}, Shard{3, 1}, Shard{3, 2},
                                         Shard{8, 7}, Shard{64, 0}, Shard{64, 10}, Shard{64, 63}),
                         [](const testing::TestParamInfo<Shard>& info) {
                           return std::to_string(info.param.rank) + "_of_" + std::to_string(info.param.count);
                         });

TEST_P(OneShard, CountsItsBlocksAndKeys) {
  const Shard shard = GetParam();
  for (std::int32_t blocks = 0; blocks <= kBlocks; ++blocks) {
    EXPECT_EQ(shard.held(blocks) * kBlock, walk(blocks * kBlock)) << blocks;
  }
  for (std::int32_t keys = 0; keys <= kBlocks * kBlock; ++keys) {
    ASSERT_EQ(shard.held_keys(keys, kBlock), walk(keys)) << keys;
  }
}

TEST_P(OneShard, NumbersItsBlocksInTheSequence) {
  const Shard shard = GetParam();
  for (std::int32_t own = 0; own < shard.held(kBlocks); ++own) {
    EXPECT_TRUE(shard.holds(shard.block(own)));
    EXPECT_EQ(shard.held(shard.block(own)), own);
  }
}

/// From positions before the first key on: more queries than keys.
TEST_P(OneShard, NeighbouringQueriesSeeWhatTheirPositionsTell) {
  for (std::int32_t position = -3 * kBlock; position < (kBlocks - 1) * kBlock; ++position) {
    const SeenKeys seen = GetParam().seen_keys(position, kBlock);
    for (std::int32_t i = 0; i < kBlock; ++i) {
      ASSERT_EQ(std::max(seen.of(i), 0), walk(position + i + 1)) << "query " << i << " after " << position;
    }
  }
}

/// The table says of each page which one of the sequence it is.
TEST_P(OneShard, FindsPagesInItsRowsOfTheTable) {
  for (const std::int32_t page_size : {16, 64}) {
    const std::int32_t pages_per_block = kBlock / page_size;
    std::vector<std::int32_t> table(1, -1);  // the row of another sequence, as long as it needs to be
    for (std::int32_t page = 0; page < kBlocks * pages_per_block; ++page) {
      if (GetParam().holds(page / pages_per_block)) table.push_back(page);
    }
    BatchView batch{};
    batch.block_table = {table.data(), 1};
    batch.table_row = 1;
    batch.page_size = page_size;
    batch.block_size = kBlock;
    batch.shard = GetParam();
    for (std::int32_t page = 0; page < kBlocks * pages_per_block; ++page) {
      if (!GetParam().holds(page / pages_per_block)) continue;
      EXPECT_EQ(batch.page(1, page), page);
    }
  }
}

}  // namespace
}  // namespace openmsa::test
