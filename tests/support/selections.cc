#include "support/selections.h"

#include <algorithm>
#include <numeric>
#include <set>

#include "core/plan.h"

namespace openmsa::test {
namespace {

/// Writes `blocks` and the rest of the row as -1.
void set_row(Buffer& indices, std::int64_t r, std::int64_t row, const std::vector<std::int64_t>& blocks) {
  for (std::int64_t slot = 0; slot < indices.shape()[2]; ++slot) {
    const auto i = static_cast<std::size_t>(slot);
    indices.set({r, row, slot}, i < blocks.size() ? static_cast<double>(blocks[i]) : -1);
  }
}

Buffer empty_selection(const Layer& layer) {
  return Buffer(OPENMSA_INT32, {layer.shape.num_heads_kv, layer.total_q(), layer.shape.topk});
}

/// kv_blocks of the row's sequence; 0 for padding.
std::int64_t num_blocks(const Layer& layer, std::int64_t row) {
  const std::size_t b = layer.sequence_of(row);
  return b == layer.shape.seqlens_k.size() ? 0 : core::ceil_div(layer.shape.seqlens_k[b], layer.shape.block_size);
}

}  // namespace

Buffer random_selection(const Layer& layer, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  Buffer indices = empty_selection(layer);
  for (std::int64_t r = 0; r < layer.shape.num_heads_kv; ++r) {
    for (std::int64_t row = 0; row < layer.total_q(); ++row) {
      std::vector<std::int64_t> blocks(static_cast<std::size_t>(num_blocks(layer, row)));
      std::iota(blocks.begin(), blocks.end(), 0);
      std::shuffle(blocks.begin(), blocks.end(), random);
      const auto most = std::min(static_cast<std::size_t>(layer.shape.topk), blocks.size());
      blocks.resize(random() % 4 == 0 ? random() % (most + 1) : most);
      set_row(indices, r, row, blocks);
    }
  }
  return indices;
}

Buffer clustered_selection(const Layer& layer, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  Buffer indices = empty_selection(layer);
  constexpr std::int64_t kRun = 64;
  const auto topk = static_cast<std::size_t>(layer.shape.topk);
  for (std::int64_t r = 0; r < layer.shape.num_heads_kv; ++r) {
    std::vector<std::int64_t> shared;
    for (std::int64_t row = 0; row < layer.total_q(); ++row) {
      if (row % kRun == 0) {
        shared.clear();
        for (std::size_t i = 0; i < topk * 3 / 4; ++i) shared.push_back(static_cast<std::int64_t>(random() >> 1));
      }
      const std::int64_t visible = layer.visible_blocks(row);
      std::set<std::int64_t> blocks;
      const auto add = [&](std::int64_t block) {
        if (blocks.size() < topk) blocks.insert(block);
      };
      if (visible > 0) {
        add(visible - 1);
        add(0);
        for (const std::int64_t block : shared) add(block % visible);
      }
      while (visible > 0 && blocks.size() < std::min(topk, static_cast<std::size_t>(visible))) {
        add(static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(visible)));
      }
      set_row(indices, r, row, {blocks.begin(), blocks.end()});
    }
  }
  return indices;
}

}  // namespace openmsa::test
