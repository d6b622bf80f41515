// Prompts in pieces: how they are cut, and their keys gathered.
#include <algorithm>
#include <array>
#include <initializer_list>

#include "layer.h"

namespace openmsa::nccl {
namespace {

void check_queries(const openmsa_nccl_layer* layer) {
  if (layer == nullptr) fail(OPENMSA_INVALID_ARGUMENT, "layer: expected one, got NULL");
  if (layer->division != OPENMSA_NCCL_QUERIES) {
    fail(OPENMSA_INVALID_ARGUMENT, "division: expected QUERIES, got ", static_cast<int>(layer->division));
  }
  if (layer->config.page_size == 0) {
    fail(OPENMSA_INVALID_ARGUMENT, "page_size: expected one, for gathered keys are pages, got 0");
  }
}

openmsa_nccl_prompt prompt_of(const openmsa_nccl_layer& layer, std::int64_t seqlen) {
  const openmsa_config& config = layer.config;
  if (seqlen < 1 || seqlen > config.max_seqlen_k) {
    fail(OPENMSA_INVALID_ARGUMENT, "seqlen: expected 1 to max_seqlen_k = ", config.max_seqlen_k, ", got ", seqlen);
  }
  const std::int64_t pieces = 2 * static_cast<std::int64_t>(layer.count);
  const std::int64_t tokens = ceil_div(ceil_div(seqlen, config.block_size), pieces) * config.block_size;
  openmsa_nccl_prompt prompt{tokens, {}, {}, pieces * tokens / config.page_size};
  const std::int64_t mine[] = {layer.rank, pieces - 1 - layer.rank};
  for (int i = 0; i < 2; ++i) {
    prompt.begin[i] = std::min(mine[i] * tokens, seqlen);
    prompt.end[i] = std::min((mine[i] + 1) * tokens, seqlen);
  }
  return prompt;
}

/// Where piece `piece` lies among the gathered ones: rank 0 has the first and the last, rank 1 those next to them.
std::int64_t place_of(std::int64_t piece, std::int64_t pieces) {
  return piece < pieces / 2 ? 2 * piece : 2 * (pieces - 1 - piece) + 1;
}

struct Gather {
  const char *name, *cache_name;
  const openmsa_tensor *rows, *cache;
  std::int32_t heads, dim;  // 0 heads: none
  openmsa_dtype dtype;
};

bool is_contiguous(const openmsa_tensor& tensor) {
  std::int64_t stride = 1;
  for (std::int32_t i = tensor.rank - 1; i >= 0; --i) {
    if (tensor.shape[i] != 1 && tensor.strides[i] != stride) return false;
    stride *= tensor.shape[i];
  }
  return true;
}

void check_contiguous(const char* name, const openmsa_tensor& tensor, std::initializer_list<std::int64_t> shape,
                      openmsa_dtype dtype) {
  const bool is_so = tensor.data != nullptr && tensor.dtype == dtype && is_contiguous(tensor) &&
                     std::equal(shape.begin(), shape.end(), tensor.shape, tensor.shape + tensor.rank);
  if (is_so) return;
  std::ostringstream expected, got;
  for (const std::int64_t extent : shape) expected << (expected.tellp() > 0 ? ", " : "") << extent;
  for (std::int32_t i = 0; i < tensor.rank; ++i) got << (i > 0 ? ", " : "") << tensor.shape[i];
  fail(OPENMSA_INVALID_ARGUMENT, name, ": expected [", expected.str(), "] of dtype ", static_cast<int>(dtype),
       ", contiguous, got [", got.str(), "] of dtype ", static_cast<int>(tensor.dtype),
       is_contiguous(tensor) ? "" : ", not contiguous");
}

/// Rows of a rank's two pieces, as many as `tokens` says, and their cache.
void check_gather(const openmsa_nccl_layer& layer, const Gather& gather, std::int64_t tokens) {
  const std::int64_t page_size = layer.config.page_size, pages = layer.count * tokens / page_size;
  if (gather.heads == 0) {
    check_contiguous(gather.name, *gather.rows, {tokens, gather.dim}, gather.dtype);
    check_contiguous(gather.cache_name, *gather.cache, {pages, page_size, gather.dim}, gather.dtype);
  } else {
    check_contiguous(gather.name, *gather.rows, {tokens, gather.heads, gather.dim}, gather.dtype);
    check_contiguous(gather.cache_name, *gather.cache, {pages, page_size, gather.heads, gather.dim}, gather.dtype);
  }
}

void gather_keys(const openmsa_nccl_layer& layer, const openmsa_tensors& tensors, cudaStream_t stream) {
  const openmsa_config& config = layer.config;
  const openmsa_dtype kv_dtype = config.kv_dtype != 0 ? config.kv_dtype : config.dtype;
  const openmsa_dtype index_dtype = config.index_dtype != 0 ? config.index_dtype : config.dtype;
  const std::array<Gather, 3> all = {
      Gather{"index_k", "index_k_cache", &tensors.index_k, &tensors.index_k_cache, 0, config.index_dim, index_dtype},
      Gather{"k", "k_cache", &tensors.k, &tensors.k_cache, config.num_heads_kv, config.head_dim, kv_dtype},
      Gather{"v", "v_cache", &tensors.v, &tensors.v_cache, config.num_heads_kv, config.head_dim, kv_dtype}};
  const auto is_given = [](const Gather& gather) { return gather.rows->rank > 0 || gather.cache->rank > 0; };
  if (is_given(all[1]) != is_given(all[2]) || (!is_given(all[0]) && !is_given(all[1]))) {
    fail(OPENMSA_INVALID_ARGUMENT, "k, v, index_k: expected k and v, index_k, or both with their caches, got ",
         is_given(all[1])   ? "k without v"
         : is_given(all[2]) ? "v without k"
                            : "none");
  }
  const std::int64_t tokens = (is_given(all[0]) ? all[0] : all[1]).rows->shape[0];
  const std::int64_t unit = 2 * static_cast<std::int64_t>(config.block_size);
  if (tokens <= 0 || tokens % unit != 0) {
    fail(OPENMSA_INVALID_ARGUMENT, is_given(all[0]) ? "index_k" : "k", ": expected two pieces of whole kv_blocks, ",
         unit, " tokens or a multiple, got ", tokens);
  }
  for (const Gather& gather : all) {
    if (is_given(gather)) check_gather(layer, gather, tokens);
  }
  Group group;
  for (const Gather& gather : all) {
    if (!is_given(gather)) continue;
    check(ncclAllGather(gather.rows->data, gather.cache->data, bytes_of(*gather.rows), ncclUint8, layer.comm, stream),
          "ncclAllGather");
  }
  group.end();
}

}  // namespace
}  // namespace openmsa::nccl

openmsa_status openmsa_nccl_prompt_pieces(const openmsa_nccl_layer* layer, int64_t seqlen,
                                          openmsa_nccl_prompt* prompt) {
  using namespace openmsa::nccl;
  return guarded([&] {
    check_queries(layer);
    if (prompt == nullptr) fail(OPENMSA_INVALID_ARGUMENT, "prompt: expected a place for it, got NULL");
    *prompt = prompt_of(*layer, seqlen);
  });
}

openmsa_status openmsa_nccl_prompt_pages(const openmsa_nccl_layer* layer, int64_t seqlen, int32_t* pages) {
  using namespace openmsa::nccl;
  return guarded([&] {
    check_queries(layer);
    if (pages == nullptr) fail(OPENMSA_INVALID_ARGUMENT, "pages: expected a place for them, got NULL");
    const std::int64_t pieces = 2 * static_cast<std::int64_t>(layer->count);
    const std::int64_t pages_per_piece = prompt_of(*layer, seqlen).num_pages / pieces;
    for (std::int64_t piece = 0; piece < pieces; ++piece) {
      for (std::int64_t i = 0; i < pages_per_piece; ++i) {
        pages[piece * pages_per_piece + i] = static_cast<int32_t>(place_of(piece, pieces) * pages_per_piece + i);
      }
    }
  });
}

openmsa_status openmsa_nccl_gather_keys(const openmsa_nccl_layer* layer, const openmsa_tensors* tensors, void* stream) {
  using namespace openmsa::nccl;
  return guarded([&] {
    check_queries(layer);
    gather_keys(*layer, tensors_of(tensors), static_cast<cudaStream_t>(stream));
  });
}
