#include "cuda/generic/training/heuristics.h"

#include <gtest/gtest.h>

namespace openmsa::cuda::generic::training {
namespace {

TEST(BackwardHeads, ShareAListBatchWhereItHoldsAllTheirRows) {
  EXPECT_EQ(backward_heads(4, 8192, 65536, 8 << 20), 4);
  EXPECT_EQ(backward_heads(64, 8192, 65536, 8 << 20), 8);
  EXPECT_EQ(backward_heads(4, 32768, 65536, 32 << 20), 2);
  EXPECT_EQ(backward_heads(4, 32769, 65536, 32 << 20), 1);
  EXPECT_EQ(backward_heads(4, 1 << 20, 65536, 1 << 30), 1);  // whatever it takes
  EXPECT_EQ(backward_heads(4, 128, 65536, 300 << 20), 3);    // half of the workspace for sums of keys
}

TEST(ListBatchRows, AreEven) {
  EXPECT_EQ(list_batch_rows(65536, 65536), 65536);
  EXPECT_EQ(list_batch_rows(65537, 65536), 32769);
  EXPECT_EQ(list_batch_rows(1 << 20, 65536), 65536);
  EXPECT_EQ(list_batch_rows(0, 65536), 0);
}

TEST(ListRangeRows, GiveAKvBlockEnoughVisits) {
  EXPECT_EQ(list_range_rows(64, 16, 65536), 4096);
  EXPECT_EQ(list_range_rows(1024, 16, 65536), 4096);
  EXPECT_EQ(list_range_rows(1025, 16, 65536), 4224);  // 4100 in whole pieces of 128
  EXPECT_EQ(list_range_rows(8192, 16, 65536), 32768);
  EXPECT_EQ(list_range_rows(8192, 1, 65536), 65536);
}

}  // namespace
}  // namespace openmsa::cuda::generic::training
