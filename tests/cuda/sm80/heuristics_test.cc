// Cut-offs of the portable kernels: where each one lies, and what holds on both sides of it.
#include "cuda/sm80/heuristics.h"

#include <gtest/gtest.h>

namespace openmsa::test {
namespace {

using namespace cuda::sm80;

TEST(PortableRoutes, StepsOfOneTokenEachAndFewTokensAreDecode) {
  EXPECT_TRUE(is_decode({1, 1}));
  EXPECT_TRUE(is_decode({16, 1}));
  EXPECT_FALSE(is_decode({17, 1}));
  EXPECT_TRUE(is_decode({64, 4}));
  EXPECT_FALSE(is_decode({65, 4}));
  EXPECT_TRUE(is_decode({512, 512}));
  EXPECT_FALSE(is_decode({513, 512}));
}

TEST(PortableRoutes, ServeEveryNumberOfQueryTokensOnce) {
  for (const CallShape call : {CallShape{1, 1}, CallShape{17, 1}, CallShape{64, 4}, CallShape{8192, 33}}) {
    for (std::int32_t decode_queries = 0; decode_queries <= kDecodeQueries; ++decode_queries) {
      const Route served = route(call, decode_queries);
      for (std::int32_t tokens = 1; tokens < 100; ++tokens) {
        EXPECT_EQ(served.decode.has(tokens) + served.prefill.has(tokens), 1)
            << call.total_q << " tokens, " << call.batch << " sequences, " << tokens << " of one";
      }
      EXPECT_TRUE(served.decode.is_open() != served.prefill.is_open()) << "padding rows belong to one of them";
    }
  }
}

TEST(PortableRoutes, WithoutRoomForScoresPromptsServeAll) {
  EXPECT_TRUE(route({1, 1}, 0).decode.is_empty());
  EXPECT_TRUE(route({8192, 33}, 0).decode.is_empty());
}

TEST(PortableSplits, FillTheDeviceWhereThereAreKeysForIt) {
  EXPECT_EQ(select_splits(264, 1024, 264, 64), 1);
  EXPECT_EQ(select_splits(132, 1024, 264, 64), 2);
  EXPECT_EQ(select_splits(1, 8192, 264, 64), 64);  // no more lists than that to merge
  EXPECT_EQ(select_splits(1, 63, 264, 64), 7);     // 8 kv_blocks each
  EXPECT_EQ(select_splits(0, 0, 264, 64), 1);
}

TEST(PortableScores, StayWithinTheirBytes) {
  EXPECT_EQ(score_queries(4 * 1024 * 4, 256), kDecodeQueries);  // 128K keys, 4 KV heads, 256 sequences
  EXPECT_EQ(score_queries(4 * 8192 * 4, 256), 8);               // 1M keys
  EXPECT_EQ(score_queries(64 * 8192 * 4, 1024), 0);
  for (const std::int64_t batch : {1, 3, 300, 5000}) {
    for (const std::int64_t bytes : {1 << 10, 1 << 17, 1 << 24}) {
      EXPECT_LE(score_queries(bytes, batch) * bytes * batch, kMostScoreBytes);
    }
  }
}

TEST(PortableDecode, PartsAreNoMoreThanThereIsRoomFor) {
  EXPECT_EQ(decode_splits(4, 132, false), 16);
  EXPECT_EQ(decode_splits(4, 132, true), 64);
  EXPECT_EQ(decode_splits(128, 132, false), 2);
  EXPECT_EQ(decode_splits(264, 132, false), 1);
  EXPECT_EQ(decode_splits(128, 132, true), 8);
  for (const std::int64_t rows : {0, 1, 5, 31, 2000, 100000}) {
    for (const std::int64_t sms : {16, 128, 256}) {
      for (const bool is_dense : {false, true}) {
        const std::int64_t splits = decode_splits(rows, sms, is_dense);
        EXPECT_GE(splits, 1);
        EXPECT_TRUE(splits == 1 || splits * rows <= kMostDecodeCtas);
      }
    }
  }
}

TEST(PortableSchedule, BatchesStayWithinTheirBytesAndRows) {
  const std::int64_t row_bytes = 16 * 16 * (128 * 2 + 4);
  const std::int64_t tiles = schedule_batch_tiles(row_bytes, 8, 1 << 20);
  EXPECT_LE(tiles * 8 * row_bytes, std::int64_t{960} << 20);
  EXPECT_EQ(schedule_batch_tiles(row_bytes, 8, 3), 3);
  EXPECT_EQ(schedule_batch_tiles(std::int64_t{1} << 40, 8, 3), 1);
  EXPECT_EQ(batches_together(100, 400, 4), 4);
  EXPECT_EQ(batches_together(100, 399, 4), 2);
  EXPECT_EQ(batches_together(100, 100, 4), 1);
}

}  // namespace
}  // namespace openmsa::test
