// Cut-offs of the Hopper kernels: where each one lies, and what holds on both sides of it.
#include "cuda/sm90/heuristics.h"

#include <gtest/gtest.h>

#include <vector>

#include "cuda/sm90/prefill/select/splits.h"

namespace openmsa::test {
namespace {

using namespace cuda::sm90;
using cuda::sm90::prefill::select_splits;

/// score_rows: without one, as many as any call needs.
CallShape call(std::int64_t total_q, std::int64_t batch, std::int64_t score_rows = 1 << 20) {
  return {total_q, batch, 131072, score_rows};
}

TEST(Routes, FewTokensAreServedByDecodeWhoeverHasThem) {
  EXPECT_EQ(attend_route(call(1, 1)), kDecodeServesAll);
  EXPECT_EQ(attend_route(call(64, 1)), kDecodeServesAll);
  EXPECT_EQ(attend_route(call(65, 1)), kPrefillServesAll);
  EXPECT_EQ(attend_route(call(65, 4)), kMixture);
  EXPECT_EQ(attend_route(call(65, 5)), kDecodeServesAll);  // up to 16 each, on average
  EXPECT_EQ(attend_route(call(128, 64)), kDecodeServesAll);
  EXPECT_EQ(attend_route(call(129, 64)), kMixture);
  EXPECT_EQ(attend_route(call(512, 512)), kDecodeServesAll);  // one token each, or a step with empty rows
  EXPECT_EQ(attend_route(call(513, 512)), kMixture);
}

TEST(Routes, TheIndexBranchOfFewTokensLooksAtTheirMean) {
  EXPECT_EQ(select_route(call(16, 1)), kDecodeServesAll);
  EXPECT_EQ(select_route(call(17, 1)), kPrefillServesAll);
  EXPECT_EQ(select_route(call(128, 8)), kDecodeServesAll);
  EXPECT_EQ(select_route(call(64, 3)), kPrefillServesAll);
  EXPECT_EQ(select_route(call(65, 3)), kMixture);
  EXPECT_EQ(select_route(call(65, 1)), kPrefillServesAll);
  EXPECT_EQ(select_route(call(129, 2)), kMixture);
  EXPECT_EQ(select_route(call(512, 512)), kDecodeServesAll);
}

TEST(Routes, OfAMixtureServeEveryNumberOfQueryTokensOnce) {
  for (std::int32_t tokens = 1; tokens < 300; ++tokens) {
    EXPECT_EQ(kMixture.decode[0].has(tokens) + kMixture.decode[1].has(tokens) + kMixture.prefill.has(tokens), 1);
  }
  EXPECT_TRUE(kMixture.decode[1].has(16) && kMixture.prefill.has(17));
}

TEST(Routes, KeyUnitsOfADecodeStepFitIn32Bits) {
  // 2^20 keys are 8193 units of 128 at most; 2^31 / 8193 is 262112.
  EXPECT_EQ(select_route({131056, 131056, 1 << 20, 1 << 20}), kDecodeServesAll);
  EXPECT_EQ(select_route({131057, 131056, 1 << 20, 1 << 20}), kPrefillServesAll);
}

TEST(Routes, OfTheIndexBranchHaveRoomForTheirScores) {
  EXPECT_EQ(select_route(call(100, 100, 100)), kDecodeServesAll);
  EXPECT_EQ(select_route(call(100, 100, 99)), kPrefillServesAll);
  EXPECT_EQ(select_route(call(2048, 256, 2048)), kMixture);
  EXPECT_EQ(select_route(call(8192, 256, 4096)), kMixture);  // 16 for each sequence
  EXPECT_EQ(select_route(call(8192, 256, 4095)), mixture(15));
  EXPECT_EQ(select_route(call(8192, 256, 256)), mixture(1));
  EXPECT_EQ(select_route(call(8192, 256, 255)), kPrefillServesAll);
  EXPECT_TRUE(mixture(1).decode[1].is_empty() && mixture(1).prefill.has(2));
}

TEST(DecodeScoreRows, AreAllThatDecodeServesOrAGibibyte) {
  EXPECT_EQ(decode_score_rows(8192, 512, 128 << 10), 8192);
  EXPECT_EQ(decode_score_rows(8192, 16, 128 << 10), 256);
  EXPECT_EQ(decode_score_rows(1 << 20, 1, 128 << 10), 128);  // few tokens, whoever has them
  EXPECT_EQ(decode_score_rows(512, 512, 128 << 10), 512);
  EXPECT_EQ(decode_score_rows(8192, 512, 256 << 10), 4096);
  EXPECT_EQ(decode_score_rows(8, 8, std::int64_t{2} << 30), 1);
}

TEST(SelectSplits, FillTheDeviceTwiceWhereThereAreKeysForIt) {
  EXPECT_EQ(select_splits(264, 1024, 128), 1);
  EXPECT_EQ(select_splits(132, 1024, 128), 2);
  EXPECT_EQ(select_splits(3, 1024, 128), 88);
  EXPECT_EQ(select_splits(1, 8192, 128), 128);  // no more lists than that to merge
  EXPECT_EQ(select_splits(1, 63, 128), 7);      // 8 kv_blocks each
  EXPECT_EQ(select_splits(1, 1, 128), 1);
  EXPECT_EQ(select_splits(0, 1024, 128), 128);
}

TEST(IndexCtas, AreAloneWhereLatencyCounts) {
  EXPECT_TRUE(index_cta_is_alone(2));
  EXPECT_FALSE(index_cta_is_alone(3));
}

TEST(ScheduleBatchTiles, AreBoundedInRowsAndInBytes) {
  EXPECT_EQ(schedule_batch_tiles(1, 8, 1 << 20), 16384 / 8);
  EXPECT_EQ(schedule_batch_tiles(std::int64_t{960} << 20, 8, 1 << 20), 1);
  EXPECT_EQ(schedule_batch_tiles(std::int64_t{960} << 10, 8, 1 << 20), 1024 / 8);
  EXPECT_EQ(schedule_batch_tiles(1, 8, 5), 5);
}

TEST(ScheduleBatchPasses, KeepQueriesInTheL2Cache) {
  constexpr std::int64_t kMiB = 1 << 20;
  EXPECT_EQ(schedule_batch_passes(16 * kMiB, 4), 1);
  EXPECT_EQ(schedule_batch_passes(17 * kMiB, 4), 2);
  EXPECT_EQ(schedule_batch_passes(640 * kMiB, 4), 4);
}

TEST(BatchesAtOnce, AreEightAtATime) {
  EXPECT_EQ(batches_at_once(3), 3);
  EXPECT_EQ(batches_at_once(9), 8);
}

TEST(TilesOnAllSms, AreAsManyForEverySm) {
  EXPECT_EQ(tiles_on_all_sms(100, 2048, 132), 100);
  EXPECT_EQ(tiles_on_all_sms(5000, 2048, 132), 1980);
  EXPECT_EQ(tiles_on_all_sms(5000, 100, 132), 100);
}

TEST(BatchesTogether, AreAsManyAsHaveRoom) {
  EXPECT_EQ(batches_together(34, 136, 4), 4);
  EXPECT_EQ(batches_together(34, 135, 4), 2);
  EXPECT_EQ(batches_together(1026, 2048, 4), 1);
}

TEST(SharedThreshold, IsThreeQuartersOfATile) {
  EXPECT_EQ(shared_threshold(8), 6);
  EXPECT_EQ(shared_threshold(32), 24);
  EXPECT_EQ(shared_threshold(1), 2);
}

TEST(IndexTileRows, HoldTheRowsOfASequence) {
  EXPECT_EQ(index_tile_rows(1, 4), 8);
  EXPECT_EQ(index_tile_rows(3, 4), 16);
  EXPECT_EQ(index_tile_rows(5, 4), 32);
  EXPECT_EQ(index_tile_rows(9, 4), 64);
  EXPECT_EQ(index_tile_rows(16, 64), 64);
}

TEST(ClusterQueries, ShareOnlyWhenTheSmsAreTaken) {
  EXPECT_EQ(cluster_queries(33, 33, 4, 132, false), 1);
  EXPECT_EQ(cluster_queries(128, 8, 4, 132, false), 4);  // 8 per sequence
  EXPECT_EQ(cluster_queries(96, 6, 4, 132, false), 3);
  EXPECT_EQ(cluster_queries(80, 5, 4, 132, false), 1);
  EXPECT_EQ(cluster_queries(128, 8, 4, 132, true), 1);
}

TEST(ClusterCtas, AreTheMostThatRunAtOnce) {
  std::vector<unsigned int> asked;
  const auto all_fit = [&](unsigned int ctas) {
    asked.push_back(ctas);
    return static_cast<int>(132 / ctas);
  };
  EXPECT_EQ(cluster_ctas(4, 132, 2, all_fit), 16u);
  EXPECT_EQ(cluster_ctas(16, 132, 2, all_fit), 8u);
  EXPECT_EQ(cluster_ctas(32, 132, 1, all_fit), 4u);
  EXPECT_EQ(cluster_ctas(128, 132, 2, all_fit), 2u);  // two CTAs share an SM
  EXPECT_EQ(cluster_ctas(1000, 132, 2, all_fit), 1u);
  for (const unsigned int ctas : asked) EXPECT_GT(ctas, 2u) << "smaller clusters always find room";
}

TEST(ClusterCtas, ThatShareSmsLeaveAQuarterOfTheRoom) {
  const auto two_per_sm = [](unsigned int ctas) { return static_cast<int>(264 / ctas); };
  EXPECT_EQ(cluster_ctas(32, 132, 2, two_per_sm), 6u);
  EXPECT_EQ(cluster_ctas(64, 132, 2, two_per_sm), 3u);
  EXPECT_EQ(cluster_ctas(12, 132, 2, two_per_sm), 8u);  // not 16: larger ones have SMs to themselves
}

TEST(ClusterCtas, ShrinkWhereTheCardHasNoRoomForThatMany) {
  const auto crowded = [](unsigned int ctas) { return ctas <= 3 ? 32 : 31; };
  EXPECT_EQ(cluster_ctas(32, 132, 1, crowded), 3u);
}

}  // namespace
}  // namespace openmsa::test
