// Operations and bytes of a prefill, by stage: the figures that rates are made of.
#pragma once

#include <openmsa/openmsa.hpp>
#include <vector>

namespace openmsa::cli {

/// A prompt of `queries` tokens at the end of `keys`.
struct PrefillSequence {
  std::int64_t queries;
  std::int64_t keys;
};

/// Operations (a multiply-add is two, causal; a selection that keeps all there is has none) and bytes, each input read
/// once and each result written once.
struct Work {
  double operations = 0;
  double bytes = 0;
};

Work select_work(const Config& config, const std::vector<PrefillSequence>& sequences);
Work attend_work(const Config& config, const std::vector<PrefillSequence>& sequences);
Work dense_work(const Config& config, const std::vector<PrefillSequence>& sequences);

inline Work operator+(Work a, Work b) { return {a.operations + b.operations, a.bytes + b.bytes}; }

}  // namespace openmsa::cli
