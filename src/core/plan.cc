#include "core/plan.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "core/dtype.h"
#include "core/error.h"

namespace openmsa::core {
namespace {

void check_range(const char* name, std::int64_t value, std::int64_t low, std::int64_t high) {
  require(value >= low && value <= high, name, ": expected ", low, " to ", high, ", got ", value);
}

void check_dimension(const char* name, std::int64_t value) {
  require(value > 0, name, ": expected a positive number, got ", value);
  if (value % 8 != 0 || value > 256) {
    fail(OPENMSA_UNSUPPORTED, name, ": expected a multiple of 8 up to 256, got ", value);
  }
}

void check_backend(const openmsa_config& config) {
  require(config.backend >= OPENMSA_BACKEND_CPU && config.backend <= OPENMSA_BACKEND_CUDA,
          "backend: expected OPENMSA_BACKEND_CPU, _REFERENCE, _REFERENCE_FLOAT32 or _CUDA, got ", config.backend);
  require(config.dtype == OPENMSA_FLOAT32 || config.dtype == OPENMSA_BFLOAT16 || config.dtype == OPENMSA_FLOAT16 ||
              config.dtype == OPENMSA_FLOAT64,
          "dtype: expected fp32, bf16, fp16 or fp64, got ", dtype_name(config.dtype));
  if (config.dtype == OPENMSA_FLOAT64 && !is_reference(config.backend)) {
    fail(OPENMSA_UNSUPPORTED, "dtype: expected fp32, bf16 or fp16 (fp64 is for the reference backend), got fp64");
  }
}

void check_key_dtype(const char* name, openmsa_dtype key_dtype, openmsa_dtype dtype) {
  require(key_dtype == 0 || key_dtype == dtype || key_dtype == OPENMSA_FLOAT8_E4M3, name,
          ": expected 0, dtype = ", dtype_name(dtype), " or e4m3, got ", dtype_name(key_dtype));
}

void check_key_dtypes(const openmsa_config& config) {
  check_key_dtype("kv_dtype", config.kv_dtype, config.dtype);
  check_key_dtype("index_dtype", config.index_dtype, config.dtype);
  if (config.kv_dtype == OPENMSA_FLOAT8_E4M3 && config.page_size == 0) {
    fail(OPENMSA_UNSUPPORTED, "kv_dtype: expected ", dtype_name(config.dtype), " for contiguous keys, got e4m3");
  }
}

const char* name_of(openmsa_index_q_rounding rounding) {
  constexpr const char* kNames[] = {"OPENMSA_INDEX_Q_SCALED", "OPENMSA_INDEX_Q_CAST", "OPENMSA_INDEX_Q_EXACT"};
  return kNames[rounding];
}

void check_fp8_index(const openmsa_config& config) {
  const bool has_fp8_index = config.index_dtype == OPENMSA_FLOAT8_E4M3;
  require(config.index_q_rounding >= OPENMSA_INDEX_Q_SCALED && config.index_q_rounding <= OPENMSA_INDEX_Q_EXACT,
          "index_q_rounding: expected OPENMSA_INDEX_Q_SCALED, _CAST or _EXACT, got ", config.index_q_rounding);
  require(has_fp8_index || config.index_q_rounding == 0,
          "index_q_rounding: expected OPENMSA_INDEX_Q_SCALED without index keys in e4m3, got ",
          name_of(config.index_q_rounding));
  check_range("index_scale_per_block", config.index_scale_per_block, 0, 1);
  require(has_fp8_index || config.index_scale_per_block == 0,
          "index_scale_per_block: expected 0 without index keys in e4m3, got 1");
  if (config.index_scale_per_block != 0 && config.page_size == 0) {
    fail(OPENMSA_UNSUPPORTED, "index_scale_per_block: expected 0 for contiguous keys, got 1");
  }
}

void check_heads(const openmsa_config& config) {
  check_range("num_heads_kv", config.num_heads_kv, 1, 1 << 16);
  check_range("num_heads_q", config.num_heads_q, 1, 1 << 16);
  require(config.num_heads_q % config.num_heads_kv == 0,
          "num_heads_q: expected a multiple of num_heads_kv = ", config.num_heads_kv, ", got ", config.num_heads_q);
  if (config.num_heads_q / config.num_heads_kv > 64) {
    fail(OPENMSA_UNSUPPORTED, "num_heads_q: expected at most 64 heads per KV head, got ",
         config.num_heads_q / config.num_heads_kv);
  }
  check_dimension("head_dim", config.head_dim);
  check_dimension("index_dim", config.index_dim);
}

void check_selection(const openmsa_config& config) {
  require(config.block_size > 0, "block_size: expected a positive number, got ", config.block_size);
  if (!std::has_single_bit(static_cast<std::uint32_t>(config.block_size)) || config.block_size < 8 ||
      config.block_size > 256) {
    fail(OPENMSA_UNSUPPORTED, "block_size: expected a power of two from 8 to 256, got ", config.block_size);
  }
  require(config.topk > 0, "topk: expected at least 1, got ", config.topk);
  if (config.topk > 64) fail(OPENMSA_UNSUPPORTED, "topk: expected at most 64, got ", config.topk);
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  check_range("num_init_blocks", config.num_init_blocks, 0, kMost);
  check_range("num_local_blocks", config.num_local_blocks, 0, kMost);
  require(config.page_size >= 0 && (config.page_size == 0 || config.block_size % config.page_size == 0),
          "page_size: expected 0 (contiguous) or a divisor of block_size = ", config.block_size, ", got ",
          config.page_size);
  require(std::isfinite(config.softmax_scale), "softmax_scale: expected a finite number, got ", config.softmax_scale);
}

/// cu_seqlens and seqlens_k are int32, so a sequence has fewer than 2^31 tokens; so has a batch of queries.
void check_capacities(const openmsa_config& config) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  check_range("max_batch", config.max_batch, 1, kMost);
  check_range("max_total_q", config.max_total_q, 1, kMost);
  check_range("max_seqlen_k", config.max_seqlen_k, 1, kMost);
  check_range("max_total_k", config.max_total_k, 0, kMost);
  check_range("num_threads", config.num_threads, 0, 4096);
}

void check_shards(const openmsa_config& config) {
  check_range("shard_count", config.shard_count, 0, 1 << 16);
  check_range("shard_rank", config.shard_rank, 0, std::max(config.shard_count, 1) - 1);
}

}  // namespace

std::int64_t Plan::held_keys(std::int64_t seqlen_k) const {
  const std::int64_t block_size = config.block_size, count = config.shard_count;
  const std::int64_t blocks = ceil_div(seqlen_k, block_size);
  if (blocks <= config.shard_rank) return 0;
  const std::int64_t held = ceil_div(blocks - config.shard_rank, count);
  const std::int64_t last = config.shard_rank + (held - 1) * count;
  return (held - 1) * block_size + std::min(block_size, seqlen_k - last * block_size);
}

Plan make_plan(const openmsa_config& config, int default_threads) {
  check_backend(config);
  check_heads(config);
  check_selection(config);
  check_key_dtypes(config);
  check_fp8_index(config);
  check_capacities(config);
  check_shards(config);

  Plan plan{};
  plan.config = config;
  if (config.kv_dtype == 0) plan.config.kv_dtype = config.dtype;
  if (config.index_dtype == 0) plan.config.index_dtype = config.dtype;
  if (config.shard_count == 0) plan.config.shard_count = 1;
  plan.group_size = config.num_heads_q / config.num_heads_kv;
  plan.max_blocks = ceil_div(config.max_seqlen_k, config.block_size);
  plan.max_total_k = config.max_total_k != 0 ? config.max_total_k : std::max(config.max_total_q, config.max_seqlen_k);
  plan.softmax_scale = config.softmax_scale != 0 ? config.softmax_scale : 1 / std::sqrt(double(config.head_dim));
  plan.index_scale = 1 / std::sqrt(double(config.index_dim));
  plan.num_threads = config.num_threads != 0 ? config.num_threads : default_threads;
  return plan;
}

}  // namespace openmsa::core
