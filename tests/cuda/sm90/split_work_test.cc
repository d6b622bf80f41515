// How a decode step's index branch is divided, on a host build of what its kernels call: every key unit of every query
// tile is worked off once, and segments of different query tiles do not meet in memory.
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "cuda/sm90/decode/split.h"

namespace openmsa::test {
namespace {

using namespace cuda;
using namespace cuda::sm90;
using namespace cuda::sm90::decode;

struct Step {
  SelectionRules rules;
  std::int32_t tile_queries;
  std::int32_t ctas;
  std::vector<SequenceView> sequences;
  QueryRange served = kAllSequences;
};

Step random_step(std::uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto below = [&](std::int32_t limit) { return static_cast<std::int32_t>(random() % limit); };
  Step step{{below(2) == 0 ? 64 : 128, 1 + below(20), below(3), below(3), {}}, 1 + below(16), 1 + below(4608), {}};
  if (below(2) == 0) step.served = {below(3), 1 + below(16)};
  for (std::int32_t b = below(70); b >= 0; --b) {
    const std::int32_t seqlen_k = below(4) == 0 ? below(300) : below(40000);
    step.sequences.push_back({0, below(18), 0, seqlen_k});
  }
  return step;
}

class SplitWork : public testing::TestWithParam<std::uint64_t> {};
INSTANTIATE_TEST_SUITE_P(Seeds, SplitWork, testing::Range<std::uint64_t>(1, 200));

TEST_P(SplitWork, CoversEveryKeyUnitOnce) {
  const Step step = random_step(GetParam());
  std::int32_t units = 0, query_tiles = 0;
  for (const SequenceView& view : step.sequences) {
    const SequenceWork work = sequence_work(view, step.served, step.rules, step.tile_queries);
    units += work.units();
    query_tiles += work.query_tiles;
  }
  const std::int32_t per_cta = units_per_cta(units, step.ctas);
  EXPECT_LE(units, per_cta * step.ctas);
  EXPECT_LE(kept_candidates(per_cta, step.rules), step.rules.topk);

  std::int32_t begin = 0, number = 0, free = 0;  // first unit and number of a query tile; segments taken so far
  for (const SequenceView& view : step.sequences) {
    const SequenceWork work = sequence_work(view, step.served, step.rules, step.tile_queries);
    for (std::int32_t tile = 0; tile < work.query_tiles; ++tile, ++number, begin += work.key_units) {
      if (work.key_units == 0) continue;
      const SegmentRange range = segment_range(begin, work.key_units, per_cta, number);
      EXPECT_GE(range.first, free);
      free = range.first + range.count;
      std::int32_t covered = 0;
      for (std::int32_t i = 0; i < range.count; ++i) {
        const std::int32_t cta = range.first + i - number;  // a segment's number is CTA + query tile
        ASSERT_LT(cta, step.ctas);
        const std::int32_t from = std::max(begin, cta * per_cta);
        const std::int32_t to = std::min(begin + work.key_units, (cta + 1) * per_cta);
        EXPECT_LT(from, to) << "a segment without a key unit";
        covered += to - from;
      }
      EXPECT_EQ(covered, work.key_units);
    }
  }
  EXPECT_LE(free, step.ctas + query_tiles);  // what the workspace has room for
}

TEST_P(SplitWork, ScoresWhatCompetesForSomeQuery) {
  const Step step = random_step(GetParam());
  for (const SequenceView& view : step.sequences) {
    const SequenceWork work = sequence_work(view, step.served, step.rules, step.tile_queries);
    if (!step.served.has(view.seqlen_q)) {
      EXPECT_EQ(work.query_tiles, 0);
      continue;
    }
    EXPECT_EQ(work.query_tiles, (view.seqlen_q + step.tile_queries - 1) / step.tile_queries);
    for (std::int32_t query = 0; query < view.seqlen_q; ++query) {
      const Candidates rules(step.rules, view.seqlen_k - view.seqlen_q + query);
      if (rules.slots == 0 || rules.slots == rules.end - rules.init) continue;  // no choice
      EXPECT_GE(work.key_units * kUnitKeys, rules.end * step.rules.block_size) << "query " << query;
    }
    EXPECT_LT((work.key_units - 1) * kUnitKeys, view.seqlen_k);
  }
}

/// Of a shard, what it holds of that; also where all of it has a place, since scores are what is asked for.
TEST_P(SplitWork, ScoresWhatCompetesInAShard) {
  Step step = random_step(GetParam());
  step.rules.wants_scores = true;
  for (step.rules.shard = {1 + static_cast<std::int32_t>(GetParam()) % 4, 0};
       step.rules.shard.rank < step.rules.shard.count; ++step.rules.shard.rank) {
    for (const SequenceView& view : step.sequences) {
      const SequenceWork work = sequence_work(view, step.served, step.rules, step.tile_queries);
      if (!step.served.has(view.seqlen_q)) continue;
      for (std::int32_t query = 0; query < view.seqlen_q; ++query) {
        const Candidates whole(step.rules, view.seqlen_k - view.seqlen_q + query);
        const Candidates own = whole.of_shard(step.rules.shard);
        std::int32_t competing = 0, before = 0;
        for (std::int32_t block = 0; block < whole.end; ++block) {
          if (block % step.rules.shard.count != step.rules.shard.rank) continue;
          ++(block < whole.init ? before : competing);
        }
        EXPECT_EQ(own.init, before);
        EXPECT_EQ(own.end, before + competing);
        EXPECT_EQ(own.slots, std::min(whole.slots, competing));
        if (own.slots == 0) continue;
        EXPECT_GE(work.key_units * kUnitKeys, own.end * step.rules.block_size);
      }
      const std::int32_t held = step.rules.shard.held_keys(view.seqlen_k, step.rules.block_size);
      EXPECT_LT((work.key_units - 1) * kUnitKeys, std::max(held, 1)) << "a unit without a key";
    }
  }
}

}  // namespace
}  // namespace openmsa::test
