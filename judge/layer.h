// One MSA layer with random inputs in host memory.
#pragma once

#include <cstdint>
#include <map>
#include <openmsa/openmsa.hpp>
#include <random>
#include <string>
#include <vector>

#include "judge/buffer.h"

namespace openmsa::judge {

/// Tensors under their names in openmsa_tensors.
using TensorMap = std::map<std::string, Buffer>;

/// How an fp8 tensor is scaled, with numbers far from 1. Per kv_block are index keys in pages alone: k and v beside them
/// are scaled per token.
enum class Scales { kNone, kOne, kPerToken, kPerBlock };

struct LayerShape {
  openmsa_dtype dtype = OPENMSA_FLOAT32;
  std::int32_t num_heads_q = 4;
  std::int32_t num_heads_kv = 2;
  std::int32_t head_dim = 64;
  std::int32_t index_dim = 64;
  std::int32_t block_size = 32;
  std::int32_t topk = 4;
  std::int32_t num_init_blocks = 0;
  std::int32_t num_local_blocks = 1;
  std::int32_t page_size = 0;
  std::vector<std::int64_t> seqlens_q = {100};
  std::vector<std::int64_t> seqlens_k = {100};
  std::int64_t padding_q = 0;  // query rows past the last sequence
  openmsa_dtype kv_dtype{};    // as in openmsa_config
  openmsa_dtype index_dtype{};
  Scales scales = Scales::kNone;  // of the tensors that are fp8
  openmsa_index_q_rounding index_q_rounding{};
};

/// A plan's configuration and the tensors at hand. A call takes from `tensors` what its operation reads.
struct Layer {
  LayerShape shape;
  Config config;
  TensorMap tensors;

  std::int64_t total_q() const;
  std::int64_t total_k() const;
  std::int64_t max_blocks() const;                  // kv_blocks of the longest sequence
  std::int64_t position(std::int64_t row) const;    // of a query row in its sequence; negative: sees nothing
  std::size_t sequence_of(std::int64_t row) const;  // seqlens_q.size() for padding
  std::int64_t visible_blocks(std::int64_t row) const;
  openmsa_dtype kv_dtype() const;  // the plan's dtype where the config names none
  openmsa_dtype index_dtype() const;

  Layer& add(TensorMap more);
  Layer on(openmsa_backend backend) const;
};

/// Groups of `size` that cover `count` items.
constexpr std::int64_t ceil_div(std::int64_t count, std::int64_t size) { return (count + size - 1) / size; }

/// [0, a, a + b, ...] int32.
Buffer prefix_sums(const std::vector<std::int64_t>& lengths);

/// Standard normal values of `dtype`.
Buffer random_buffer(openmsa_dtype dtype, const Shape& shape, std::mt19937_64& random);

/// Inputs of every operation: sequence lengths, q, k, v, index_q, index_k, d_o. With a page_size the same keys also lie
/// in caches, in pages of random order (that of page_seed), with NaN in every tail and in the pages that no sequence
/// owns, and in the scales of both. fp8 keys are the same keys divided by their scale and rounded.
Layer make_layer(const LayerShape& shape, std::uint64_t seed = 1, std::uint64_t page_seed = 1);

/// Queries [begin, end) of sequence `b`, with the keys that the last of them sees, as a batch of their own.
Layer excerpt(const Layer& layer, std::size_t b, std::int64_t begin, std::int64_t end);

/// The same memory divided into other sequences, and what is left of the query rows as padding. Contiguous sequences
/// follow one another. Paged ones, as many as before and none longer, keep their pages.
Layer with_lengths(Layer layer, std::vector<std::int64_t> seqlens_q, std::vector<std::int64_t> seqlens_k);

/// The layer with its keys in caches as well, as make_layer puts them there.
Layer in_pages(Layer layer, std::int32_t page_size, std::uint64_t page_seed = 1);

/// New k, v and index_k for the query tokens alone, as openmsa_append_kv takes them.
Layer with_new_keys(Layer layer, std::uint64_t seed);

}  // namespace openmsa::judge
