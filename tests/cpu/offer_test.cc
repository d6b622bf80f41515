// Running top-k lists of many columns, with every instruction set: against sorting.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "cpu/tile/tile.h"

namespace openmsa::test {
namespace {

constexpr std::int64_t kColumns = 48, kBlocks = 40;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Scores [kBlocks][kColumns] of few levels, so that most places are decided between equal ones.
std::vector<float> scores_with_ties() {
  constexpr float kLevels[] = {NAN, -kInfinity, -1e30f, -2, -0.0f, 0.0f, 1, 1e20f, kInfinity};
  std::mt19937 random(1);
  std::vector<float> scores(kBlocks * kColumns);
  for (float& score : scores) score = kLevels[random() % std::size(kLevels)];
  return scores;
}

/// Of the first `end` blocks the best, equals in ascending order, NaN last.
std::vector<std::int32_t> best_of_column(const std::vector<float>& scores, std::int64_t column, std::int32_t end,
                                         std::int64_t depth) {
  const auto score = [&](std::int32_t block) { return scores[block * kColumns + column]; };
  std::vector<std::int32_t> blocks(end);
  std::iota(blocks.begin(), blocks.end(), 0);
  std::stable_sort(blocks.begin(), blocks.end(), [&](std::int32_t a, std::int32_t b) {
    return score(a) > score(b) || (std::isnan(score(b)) && !std::isnan(score(a)));
  });
  blocks.resize(std::min<std::int64_t>(end, depth));
  return blocks;
}

TEST(Offer, KeepsTheBestOfEachColumnInOrder) {
  const std::vector<float> scores = scores_with_ties();
  std::vector<std::int32_t> ends(kColumns);
  for (std::int64_t column = 0; column < kColumns; ++column) ends[column] = static_cast<std::int32_t>(column % kBlocks);
  for (const std::int64_t depth : {1, 2, 7, 16}) {
    std::vector<std::int32_t> keys(depth * kColumns, cpu::kNoKey), blocks(keys.size());
    const cpu::TopkColumns lists{keys.data(), blocks.data(), kColumns, depth};
    for (std::int32_t block = 0; block < kBlocks; ++block) {
      cpu::tile_ops().offer(scores.data() + block * kColumns, block, ends.data(), kColumns, lists);
    }
    for (std::int64_t column = 0; column < kColumns; ++column) {
      std::vector<std::int32_t> kept;
      for (std::int64_t i = 0; i < depth && keys[i * kColumns + column] != cpu::kNoKey; ++i) {
        kept.push_back(blocks[i * kColumns + column]);
      }
      EXPECT_EQ(kept, best_of_column(scores, column, ends[column], depth)) << "column " << column << " of " << depth;
    }
  }
}

}  // namespace
}  // namespace openmsa::test
