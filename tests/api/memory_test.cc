// What can be told of the memory of a tensor.
#include "api/memory.h"

#include <gtest/gtest.h>

#include <cstdint>

namespace openmsa::test {
namespace {

/// [4, 8] of fp32 at `data`, with rows `stride` elements apart.
openmsa_tensor rows_of_8(void* data, std::int64_t stride) {
  const std::int64_t shape[] = {4, 8};
  openmsa_tensor tensor = openmsa_contiguous(data, OPENMSA_FLOAT32, 2, shape);
  tensor.strides[0] = stride;
  return tensor;
}

TEST(TensorMemory, SpansFromTheFirstElementToTheLast) {
  float memory[64];
  EXPECT_EQ(api::bytes_spanned(rows_of_8(memory, 8)), 4 * 32);
  EXPECT_EQ(api::bytes_spanned(rows_of_8(memory, 0)), 32);
  EXPECT_EQ(api::bytes_spanned(rows_of_8(memory, 16)), 3 * 64 + 32);
  EXPECT_EQ(api::bytes_spanned(rows_of_8(memory, std::int64_t{1} << 60)), std::nullopt);
  EXPECT_EQ(api::bytes_spanned(rows_of_8(memory, INT64_MAX)), std::nullopt);
  EXPECT_EQ(api::bytes_spanned(rows_of_8(reinterpret_cast<void*>(UINTPTR_MAX - 15), 8)), std::nullopt);
}

TEST(TensorMemory, IsSharedWhereAnElementIsSure) {
  float memory[128];
  const openmsa_tensor dense = rows_of_8(memory + 32, 8), spread = rows_of_8(memory + 32, 16);
  EXPECT_TRUE(api::shares_memory(dense, memory, sizeof(memory))) << "all of it";
  EXPECT_TRUE(api::shares_memory(dense, memory, 33 * 4)) << "the first element";
  EXPECT_TRUE(api::shares_memory(dense, memory + 63, 4)) << "the last element";
  EXPECT_TRUE(api::shares_memory(dense, memory + 40, 4)) << "one between them";
  EXPECT_FALSE(api::shares_memory(dense, memory, 32 * 4)) << "what is before it";
  EXPECT_FALSE(api::shares_memory(dense, memory + 64, 4)) << "what is behind it";
  EXPECT_FALSE(api::shares_memory(spread, memory + 40, 8 * 4)) << "a gap";
  EXPECT_TRUE(api::shares_memory(spread, memory + 80, 8 * 4)) << "the last row";
}

}  // namespace
}  // namespace openmsa::test
