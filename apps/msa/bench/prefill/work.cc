#include "msa/bench/prefill/work.h"

#include <algorithm>

namespace openmsa::cli {
namespace {

/// Pairs of a query and a key that it sees, where a query sees at most `most` keys.
double visible_pairs(const std::vector<PrefillSequence>& sequences, std::int64_t most) {
  double pairs = 0;
  for (const auto& [queries, keys] : sequences) {
    const std::int64_t first = keys - queries, shorter = std::clamp<std::int64_t>(most - first, 0, queries);
    pairs += static_cast<double>(shorter) * static_cast<double>(2 * first + 1 + shorter) / 2;
    pairs += static_cast<double>(queries - shorter) * static_cast<double>(most);
  }
  return pairs;
}

/// Those of the queries that see more than `most` keys: with fewer kv_blocks than it may keep a query keeps them all,
/// and nothing is scored.
double scored_pairs(const std::vector<PrefillSequence>& sequences, std::int64_t most) {
  double pairs = 0;
  for (const auto& [queries, keys] : sequences) {
    const std::int64_t before = keys - queries, first = std::clamp<std::int64_t>(most - before, 0, queries);
    pairs += static_cast<double>(queries - first) * static_cast<double>(2 * before + first + queries + 1) / 2;
  }
  return pairs;
}

double total(const std::vector<PrefillSequence>& sequences, std::int64_t PrefillSequence::*member) {
  std::int64_t sum = 0;
  for (const PrefillSequence& sequence : sequences) sum += sequence.*member;
  return static_cast<double>(sum);
}

double element_bytes(const Config& config) { return static_cast<double>(openmsa_dtype_bytes(config.dtype)); }

double index_bytes(const Config& config, const std::vector<PrefillSequence>& sequences) {
  return total(sequences, &PrefillSequence::queries) * config.num_heads_kv * config.topk * sizeof(std::int32_t);
}

Work attention_work(const Config& config, const std::vector<PrefillSequence>& sequences, std::int64_t most) {
  const double q = total(sequences, &PrefillSequence::queries) * config.num_heads_q;
  const double k = total(sequences, &PrefillSequence::keys) * config.num_heads_kv;
  return {4.0 * config.num_heads_q * config.head_dim * visible_pairs(sequences, most),
          2 * (q + k) * config.head_dim * element_bytes(config)};
}

/// Keys of the kv_blocks that a query may keep.
std::int64_t kept_keys(const Config& config) { return std::int64_t{config.topk} * config.block_size; }

std::int64_t longest(const std::vector<PrefillSequence>& sequences) {
  std::int64_t keys = 0;
  for (const PrefillSequence& sequence : sequences) keys = std::max(keys, sequence.keys);
  return keys;
}

}  // namespace

Work select_work(const Config& config, const std::vector<PrefillSequence>& sequences) {
  const double rows =
      total(sequences, &PrefillSequence::queries) * config.num_heads_kv + total(sequences, &PrefillSequence::keys);
  return {2.0 * config.num_heads_kv * config.index_dim * scored_pairs(sequences, kept_keys(config)),
          rows * config.index_dim * element_bytes(config) + index_bytes(config, sequences)};
}

Work attend_work(const Config& config, const std::vector<PrefillSequence>& sequences) {
  return attention_work(config, sequences, kept_keys(config)) + Work{0, index_bytes(config, sequences)};
}

Work dense_work(const Config& config, const std::vector<PrefillSequence>& sequences) {
  return attention_work(config, sequences, longest(sequences));
}

}  // namespace openmsa::cli
