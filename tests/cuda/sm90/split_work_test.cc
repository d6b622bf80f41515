// How a decode step's index branch is divided, on a host build of what its kernels call: the key units of all query tiles
// are shared out evenly, and hold every kv_block that competes.
#include <gtest/gtest.h>

#include <algorithm>
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

TEST_P(SplitWork, SharesOutAllKeyUnitsEvenly) {
  const Step step = random_step(GetParam());
  std::int32_t units = 0;
  for (const SequenceView& view : step.sequences) {
    units += sequence_work(view, step.served, step.rules, step.tile_queries).units();
  }
  const std::int32_t per_cta = units_per_cta(units, step.ctas);
  EXPECT_GE(per_cta * step.ctas, units);
  EXPECT_LT((per_cta - 1) * step.ctas, std::max(units, 1)) << "with fewer each CTA they would be covered too";
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
