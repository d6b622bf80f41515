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
  Step step{{below(2) == 0 ? 64 : 128, 1 + below(20), below(3), below(3)}, 1 + below(16), 1 + below(4608), {}};
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

}  // namespace
}  // namespace openmsa::test
