// Which products of bf16 in pairs run here.
#include <vector>

#include "cpu/tile/tile.h"

namespace openmsa::cpu {
namespace {

/// Intel's processors start a product of AVX512-BF16 every other cycle, on one port: half the rate of products in fp32
/// (docs/kernels/cpu.md). AMD's start two a cycle.
bool are_vectors_worth_it() {
#if defined(__x86_64__)
  return __builtin_cpu_is("amd");
#else
  return true;
#endif
}

const PairOps* fastest() {
  if (const PairOps* tiles = tile_pair_ops()) return tiles;
  return are_vectors_worth_it() ? vector_pair_ops() : nullptr;
}

const PairOps*& chosen() {
  static const PairOps* ops = fastest();
  return ops;
}

}  // namespace

const PairOps* pair_ops() { return chosen(); }

void use_pair_ops(const PairOps* ops) { chosen() = ops; }

std::vector<const PairOps*> all_pair_ops() {
  std::vector<const PairOps*> result;
  for (const PairOps* ops : {tile_pair_ops(), vector_pair_ops()}) {
    if (ops != nullptr) result.push_back(ops);
  }
  return result;
}

}  // namespace openmsa::cpu
