#include "msa/attend/layer_input.h"

#include <algorithm>
#include <limits>

#include "io/error.h"

namespace openmsa::cli {
namespace {

/// The tensors of a file that a layer can use; results are not read.
constexpr const char* kInputs[] = {
    "cu_seqlens_q", "cu_seqlens_k", "seqlens_k",     "block_table",  "q",  "k", "v", "index_q", "index_k",
    "k_cache",      "v_cache",      "index_k_cache", "topk_indices", "d_o"};

constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();  // lengths are int32

std::int32_t to_int32(const char* what, std::int64_t value) {
  if (value > kMost) {
    throw io::InputError(std::string(what) + ": " + std::to_string(value) + " is too large");
  }
  return static_cast<std::int32_t>(value);
}

}  // namespace

LayerInput::LayerInput(const std::string& path) : path_(path), file_(path), tensors_(openmsa::tensors()) {
  for (const char* name : kInputs) {
    if (!file_.contains(name)) continue;
    try {
      at(tensors_, name) = file_.at(name).view();
    } catch (const io::InputError& error) {
      throw io::InputError(path + ": tensor '" + name + "': " + error.what());
    }
  }
  if (is_paged() && (present(tensors_.k) || present(tensors_.v) || present(tensors_.cu_seqlens_k))) {
    throw io::InputError(path +
                         ": expected either k_cache, v_cache (paged) or k, v, cu_seqlens_k (contiguous), got both");
  }
}

void LayerInput::require(const char* name) const {
  if (!present(at(tensors_, name))) throw io::InputError(path_ + ": no tensor '" + name + "'");
}

std::int64_t LayerInput::extent(const char* name, int rank, int axis) const {
  require(name);
  const openmsa_tensor& tensor = at(tensors_, name);
  if (tensor.rank != rank) {
    throw io::InputError(path_ + ": " + name + ": expected " + std::to_string(rank) + " dimensions, got " +
                         std::to_string(tensor.rank));
  }
  return tensor.shape[axis];
}

Config LayerInput::layer_config() const {
  Config config = openmsa::config();
  config.dtype = tensors_.q.dtype;
  config.num_heads_q = to_int32("number of heads of q", extent("q", 3, 1));
  config.head_dim = to_int32("head_dim of q", extent("q", 3, 2));
  config.index_dim = present(tensors_.index_q) ? to_int32("index_dim of index_q", extent("index_q", 3, 2))
                                               : config.head_dim;  // not used without an index branch
  config.max_total_q = std::max<std::int64_t>(1, extent("q", 3, 0));
  if (is_paged()) {
    config.page_size = to_int32("page size of k_cache", extent("k_cache", 4, 1));
    config.num_heads_kv = to_int32("number of heads of k_cache", extent("k_cache", 4, 2));
    config.max_batch = std::max<std::int64_t>(1, extent("block_table", 2, 0));
    const std::int64_t max_pages = to_int32("pages of block_table", extent("block_table", 2, 1));
    config.max_seqlen_k = std::clamp<std::int64_t>(max_pages * config.page_size, 1, kMost);
    if (config.page_size == 0) throw io::InputError(path_ + ": k_cache: expected pages of at least one token, got 0");
  } else {
    config.num_heads_kv = to_int32("number of heads of k", extent("k", 3, 1));
    config.max_seqlen_k = std::max<std::int64_t>(1, extent("k", 3, 0));
    const char* sequences = present(tensors_.cu_seqlens_q) ? "cu_seqlens_q" : "cu_seqlens_k";
    if (present(at(tensors_, sequences))) config.max_batch = std::max<std::int64_t>(1, extent(sequences, 1, 0) - 1);
  }
  return config;
}

}  // namespace openmsa::cli
