// Where keys lie in memory, as the portable kernels work it out.
#include "cuda/sm80/tile/keys.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace openmsa::test {
namespace {

using namespace cuda;
using namespace cuda::sm80;

constexpr std::int32_t kHead = 3;

std::int64_t place(const SequenceKeys& sequence, const KeyTensor& keys, std::int32_t key) {
  return sequence.row(keys, kHead, key) - keys.data;
}

TEST(PortableKeys, OfPagesLieWhereTheTableSays) {
  std::vector<char> memory(1);
  const KeyTensor keys{memory.data(), std::int64_t{1} << 33, 1 << 20, 4096};
  for (const std::int32_t page_size : {16, 32, 128}) {
    const std::vector<std::int32_t> table = {-1, -1, -1, -1, 7, 100000, 3, 2};  // two sequences, entries 1 apart
    BatchView batch{};
    batch.page_size = page_size;
    batch.block_table = {table.data(), 1};
    batch.table_row = 4;
    const std::int32_t end = 4 * page_size - 5;
    const SequenceKeys sequence{&batch, 1, 0, end};
    for (std::int32_t key = 0; key < end; ++key) {
      const std::int64_t page = table[static_cast<std::size_t>(4 + key / page_size)], entry = key % page_size;
      EXPECT_EQ(place(sequence, keys, key), page * keys.page_stride + entry * keys.token_stride + kHead * 4096) << key;
      EXPECT_EQ(sequence.token(sequence.page(key), key), page * page_size + entry);
      const std::int32_t first = key / kGroupKeys * kGroupKeys;
      EXPECT_EQ(place(sequence, keys, key) - place(sequence, keys, first), (key - first) * keys.token_stride);
    }
    EXPECT_EQ(sequence.page(end), 0) << "the table is not read past the keys";
  }
}

TEST(PortableKeys, ThatAreContiguousFollowTheirSequence) {
  std::vector<char> memory(1);
  const KeyTensor keys{memory.data(), 0, std::int64_t{1} << 32, 256};
  BatchView batch{};
  const SequenceKeys sequence{&batch, 5, 1000, 77};
  for (std::int32_t key = 0; key < 77; ++key) {
    EXPECT_EQ(place(sequence, keys, key), (1000 + key) * keys.token_stride + kHead * 256);
    EXPECT_EQ(sequence.token(sequence.page(key), key), 1000 + key);
  }
}

}  // namespace
}  // namespace openmsa::test
