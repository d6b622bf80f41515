#include "msa/bench/selection.h"

#include <algorithm>
#include <random>

namespace openmsa::cli {
namespace {

constexpr std::int64_t kRun = 64;  // queries of a cluster

class Chooser {
 public:
  explicit Chooser(std::uint64_t seed) : generator_(seed) {}

  /// Adds kv_blocks below `visible` that are not in `chosen` until it has `count`, or all.
  void fill(std::vector<std::int32_t>& chosen, std::int64_t visible, std::int64_t count) {
    std::uniform_int_distribution<std::int32_t> any(0, static_cast<std::int32_t>(visible - 1));
    if (visible <= 2 * count) {  // few are left to draw from
      std::vector<std::int32_t> rest;
      for (std::int32_t b = 0; b < visible; ++b) {
        if (!contains(chosen, b)) rest.push_back(b);
      }
      std::shuffle(rest.begin(), rest.end(), generator_);
      const auto missing = std::clamp<std::int64_t>(count - std::ssize(chosen), 0, std::ssize(rest));
      chosen.insert(chosen.end(), rest.begin(), rest.begin() + missing);
      return;
    }
    while (std::ssize(chosen) < count) {
      const std::int32_t block = any(generator_);
      if (!contains(chosen, block)) chosen.push_back(block);
    }
  }

 private:
  static bool contains(const std::vector<std::int32_t>& chosen, std::int32_t block) {
    return std::find(chosen.begin(), chosen.end(), block) != chosen.end();
  }

  std::mt19937_64 generator_;
};

/// The kv_blocks that a run whose first query sees `visible` has in common.
std::vector<std::int32_t> shared_blocks(Chooser& chooser, std::int64_t visible, std::int32_t topk, bool is_clustered) {
  std::vector<std::int32_t> shared = {static_cast<std::int32_t>(visible - 1)};
  if (!is_clustered || topk == 1) return shared;
  if (visible > 1) shared.push_back(0);
  chooser.fill(shared, visible, topk * 3 / 4);
  return shared;
}

}  // namespace

std::vector<std::int32_t> made_up_selection(const Config& config, const std::vector<PrefillSequence>& sequences,
                                            bool is_clustered, std::uint64_t seed) {
  Chooser chooser(seed);
  std::vector<std::int32_t> result, shared, chosen;
  for (std::int32_t head = 0; head < config.num_heads_kv; ++head) {
    for (const auto& [queries, keys] : sequences) {
      std::int64_t shared_by = -1;  // run and local kv_block that `shared` was made for
      for (std::int64_t t = 0; t < queries; ++t) {
        const std::int64_t position = keys - queries + t, visible = position / config.block_size + 1;
        const std::int64_t run = is_clustered ? std::min(kRun, std::int64_t{config.block_size}) : 1;
        if (position / run != shared_by) shared = shared_blocks(chooser, visible, config.topk, is_clustered);
        shared_by = position / run;
        chosen = shared;
        chooser.fill(chosen, visible, std::min<std::int64_t>(config.topk, visible));
        std::sort(chosen.begin(), chosen.end());
        chosen.resize(static_cast<std::size_t>(config.topk), -1);
        result.insert(result.end(), chosen.begin(), chosen.end());
      }
    }
  }
  return result;
}

}  // namespace openmsa::cli
