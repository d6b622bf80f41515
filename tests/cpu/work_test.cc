// The division of a call into work items.
#include "cpu/work.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <utility>
#include <vector>

namespace openmsa::test {
namespace {

/// Plan and lengths of a batch of queries whose keys do not matter.
struct Batch {
  explicit Batch(const std::vector<std::int32_t>& lengths) {
    openmsa_config config;
    openmsa_config_init(&config);
    config.num_heads_q = config.num_heads_kv = 1;
    config.head_dim = config.index_dim = 64;
    config.max_batch = static_cast<std::int64_t>(lengths.size());
    config.max_total_q = config.max_seqlen_k = 1 << 20;
    plan = core::make_plan(config, 1);
    for (const std::int32_t length : lengths) ends.push_back(ends.back() + length);
    openmsa_tensors_init(&tensors);
    const std::int64_t shape[] = {static_cast<std::int64_t>(ends.size())};
    tensors.cu_seqlens_q = tensors.cu_seqlens_k = openmsa_contiguous(ends.data(), OPENMSA_INT32, 1, shape);
  }
  core::Problem problem() const { return {plan, tensors, plan.config.max_batch, ends.back()}; }

  core::Plan plan{};
  std::vector<std::int32_t> ends = {0};
  openmsa_tensors tensors{};
};

TEST(Work, EveryItemOfEverySequenceComesOnce) {
  const std::vector<std::int32_t> lengths = {0, 3, 0, 0, 1, 7, 0};
  const Batch batch(lengths);
  const cpu::Threads threads(1);
  std::vector<std::int64_t> room(lengths.size());
  std::vector<std::pair<std::int64_t, std::int64_t>> seen, expected;
  cpu::for_each_item(
      batch.problem(), {threads, room.data()}, [](const core::Sequence& sequence) { return sequence.seqlen_q; },
      [&](const cpu::Item& item, int) {
        EXPECT_EQ(item.sequence.q_begin, batch.ends[static_cast<std::size_t>(item.b)]);
        EXPECT_EQ(item.sequence.seqlen_q, lengths[static_cast<std::size_t>(item.b)]);
        seen.emplace_back(item.b, item.index);
      });
  for (std::size_t b = 0; b < lengths.size(); ++b) {
    for (std::int64_t i = 0; i < lengths[b]; ++i) expected.emplace_back(b, i);
  }
  std::sort(seen.begin(), seen.end());
  EXPECT_EQ(seen, expected);
}

/// An item that walked over the sequences before its own would look at each of them again.
TEST(Work, ASequenceIsLookedAtOnceHoweverManyItemsThereAre) {
  const std::vector<std::int32_t> lengths(5000, 2);
  const Batch batch(lengths);
  const cpu::Threads threads(2);
  std::vector<std::int64_t> room(lengths.size());
  std::atomic<std::int64_t> looks = 0, items = 0;
  cpu::for_each_item(
      batch.problem(), {threads, room.data()},
      [&](const core::Sequence& sequence) {
        ++looks;
        return sequence.seqlen_q;
      },
      [&](const cpu::Item&, int) { ++items; });
  EXPECT_EQ(items, 10000);
  EXPECT_EQ(looks, 5000);
}

}  // namespace
}  // namespace openmsa::test
