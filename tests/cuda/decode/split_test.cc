// The keys of all sequences in one row, cut into even parts for the SMs: every place where a cut may fall.
#include "cuda/decode/cases.h"
#include "cuda/support/device_call.h"
#include "cuda/support/hopper.h"
#include "support/compare.h"

namespace openmsa::test {
namespace {

using Lengths = std::vector<std::int64_t>;

constexpr std::int64_t kTile = 128;  // keys

class DecodeSplit : public OnHopperWith<std::int32_t> {
 protected:
  static std::int64_t multiprocessors() {
    int device = 0, count = 0;
    require_cuda(cudaGetDevice(&device), "cudaGetDevice");
    require_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
    return count;
  }

  /// Contiguous memory to be divided into sequences.
  static Layer memory(std::int64_t total_q, std::int64_t total_k) {
    return device_layer({.dtype = OPENMSA_BFLOAT16,
                         .num_heads_q = 2,
                         .block_size = GetParam(),
                         .topk = 16,
                         .seqlens_q = {total_q},
                         .seqlens_k = {total_k}});
  }

  /// The same for the index branch alone.
  static Layer index_memory(std::int64_t total_q, std::int64_t total_k) {
    Layer layer = memory(total_q, total_k);
    for (const char* name : {"q", "k", "v", "d_o"}) layer.tensors.erase(name);
    return layer;
  }

  /// With many rows that choose many blocks: where a tile is lost, one of them misses it.
  static void expect_selected(Layer memory, const Lengths& seqlens_q, const Lengths& seqlens_k) {
    for (const std::int32_t topk : {16, 64}) {
      SCOPED_TRACE(testing::Message() << testing::PrintToString(seqlens_q) << " queries, "
                                      << testing::PrintToString(seqlens_k) << " keys, topk " << topk);
      memory.shape.topk = memory.config.topk = topk;
      const Layer layer = with_lengths(memory, seqlens_q, seqlens_k);
      expect_selection(layer, run(layer, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices"), OPENMSA_BACKEND_CPU);
    }
  }
};
INSTANTIATE_TEST_SUITE_P(BlockSizes, DecodeSplit, testing::Values(64, 128), testing::PrintToStringParamName());

/// In a plan for just these keys.
TEST_P(DecodeSplit, OneSequenceNextToFullRounds) {
  Layer keys = index_memory(16, (2 * multiprocessors() + 1) * kTile);
  for (const std::int64_t rounds : {1, 2}) {
    for (const std::int64_t more : {-129, -128, -1, 0, 1, 128}) {
      keys.config.max_seqlen_k = rounds * multiprocessors() * kTile + more;
      for (const std::int64_t queries : {1, 16}) expect_selected(keys, {queries}, {keys.config.max_seqlen_k});
    }
  }
}

/// In one plan for all of them.
TEST_P(DecodeSplit, OneSequenceOfEveryNumberOfTiles) {
  const std::int64_t most = 2 * multiprocessors() + 40;
  const Layer keys = index_memory(16, most * kTile);
  for (std::int64_t tiles = 1; tiles <= most; ++tiles) {
    expect_selected(keys, {16 - tiles % 4}, {tiles * kTile - tiles * 37 % kTile});
    if (HasFailure()) return;
  }
}

TEST_P(DecodeSplit, OneTilePerSequence) {
  const std::int64_t most = 2 * multiprocessors() + 1;
  const Layer keys = index_memory(most + 5, most * kTile);
  for (const std::int64_t batch : {multiprocessors() - 1, multiprocessors(), multiprocessors() + 1, most - 2, most}) {
    Lengths seqlens_k;
    for (std::int64_t b = 0; b < batch; ++b) seqlens_k.push_back(b % 3 == 0 ? kTile : 1 + b % kTile);
    expect_selected(keys, Lengths(seqlens_k.size(), 1), seqlens_k);
    if (HasFailure()) return;
  }
}

/// Cuts inside sequences, between them, and several sequences in one part, some without keys or queries.
TEST_P(DecodeSplit, RandomBatchesOfAboutFullRounds) {
  const std::int64_t most = 3 * multiprocessors();
  const Layer keys = index_memory(32, (most + 8) * kTile);
  std::mt19937_64 random(1);
  const auto below = [&](std::int64_t end) {
    return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(end));
  };
  for (int repeat = 0; repeat < 100; ++repeat) {
    std::int64_t tiles = multiprocessors() * (1 + below(3)) + below(5) - 2;  // of the whole batch
    Lengths seqlens_q, seqlens_k;
    for (std::int64_t left = 2 + below(7); left > 0; --left) {
      const std::int64_t wanted = left == 1 ? tiles : below(3) == 0 ? below(3) : below(tiles / left * 2 + 1);
      const std::int64_t part = std::min(wanted, tiles);
      tiles -= part;
      seqlens_k.push_back(part == 0 ? 0 : part * kTile - below(2) * below(kTile));
      seqlens_q.push_back(below(5));
    }
    expect_selected(keys, seqlens_q, seqlens_k);
    if (HasFailure()) return;
  }
}

/// The largest batch of this file with attention behind the selection.
TEST_P(DecodeSplit, WholeLayerOfRaggedSequences) {
  const std::int64_t full = multiprocessors() * kTile;
  const Layer keys = memory(40, 2 * full + 3000);
  expect_layer(with_lengths(keys, {1, 16, 2, 3, 1, 1}, {full / 2 + 5, 700, full / 2 - 700, full + 1, 1, 0}),
               OPENMSA_BACKEND_CPU);
}

}  // namespace
}  // namespace openmsa::test
