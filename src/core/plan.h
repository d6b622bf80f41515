// A checked configuration and what follows from it, fixed before the first call: shapes and capacities only.
#pragma once

#include <openmsa/openmsa.h>

#include <cstdint>

namespace openmsa::core {

/// Blocks of `size` that cover `count` items.
constexpr std::int64_t ceil_div(std::int64_t count, std::int64_t size) { return (count + size - 1) / size; }

inline bool is_reference(openmsa_backend backend) {
  return backend == OPENMSA_BACKEND_REFERENCE || backend == OPENMSA_BACKEND_REFERENCE_FLOAT32;
}

/// Whether tensors and workspace lie in the memory of a device, where their values cannot be checked.
inline bool is_device(openmsa_backend backend) { return backend == OPENMSA_BACKEND_CUDA; }

struct Plan {
  openmsa_config config;  // defaults filled in: kv_dtype, index_dtype and shard_count are never 0
  std::int64_t group_size;
  std::int64_t max_blocks;   // kv_blocks of the longest sequence
  std::int64_t max_total_k;  // config.max_total_k or, where that is 0, the larger of max_total_q and max_seqlen_k
  double softmax_scale;
  double index_scale;  // 1/sqrt(index_dim)
  int num_threads;     // of the CPU backend; at least 1

  bool is_paged() const { return config.page_size > 0; }
  bool has_fp8_kv() const { return config.kv_dtype == OPENMSA_FLOAT8_E4M3; }
  bool has_fp8_index() const { return config.index_dtype == OPENMSA_FLOAT8_E4M3; }
  bool has_block_scales() const { return config.index_scale_per_block != 0; }

  bool is_sharded() const { return config.shard_count > 1; }
  /// Whether kv_block `block` of a sequence lies in the plan's shard.
  bool holds(std::int64_t block) const { return block % config.shard_count == config.shard_rank; }
  /// The first kv_block from `block` on that does; shard_count further on is the next.
  std::int64_t first_held(std::int64_t block) const {
    const std::int64_t ahead = config.shard_rank - block % config.shard_count;
    return block + (ahead < 0 ? ahead + config.shard_count : ahead);
  }
  /// Keys of a sequence that the shard holds.
  std::int64_t held_keys(std::int64_t seqlen_k) const;
};

/// `default_threads` stands in for num_threads = 0. Throws Failure: INVALID_ARGUMENT or UNSUPPORTED.
Plan make_plan(const openmsa_config& config, int default_threads);

}  // namespace openmsa::core
