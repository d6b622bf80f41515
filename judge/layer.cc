#include "judge/layer.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "judge/pages.h"

namespace openmsa::judge {
namespace {

std::int64_t sum(const std::vector<std::int64_t>& values) {
  return std::accumulate(values.begin(), values.end(), std::int64_t{0});
}

Config layer_config(const LayerShape& shape) {
  Config config = openmsa::config();
  config.dtype = shape.dtype;
  config.num_heads_q = shape.num_heads_q;
  config.num_heads_kv = shape.num_heads_kv;
  config.head_dim = shape.head_dim;
  config.index_dim = shape.index_dim;
  config.block_size = shape.block_size;
  config.topk = shape.topk;
  config.num_init_blocks = shape.num_init_blocks;
  config.num_local_blocks = shape.num_local_blocks;
  config.page_size = shape.page_size;
  config.kv_dtype = shape.kv_dtype;
  config.index_dtype = shape.index_dtype;
  config.index_q_rounding = shape.index_q_rounding;
  config.index_scale_per_block = shape.index_dtype == OPENMSA_FLOAT8_E4M3 && shape.scales == Scales::kPerBlock;
  config.max_batch = static_cast<std::int64_t>(shape.seqlens_k.size());
  config.max_total_q = std::max<std::int64_t>(1, sum(shape.seqlens_q) + shape.padding_q);
  config.max_seqlen_k = std::max<std::int64_t>(1, *std::max_element(shape.seqlens_k.begin(), shape.seqlens_k.end()));
  config.max_total_k = std::max<std::int64_t>(1, sum(shape.seqlens_k));
  return config;
}

}  // namespace

Buffer prefix_sums(const std::vector<std::int64_t>& lengths) {
  std::vector<std::int64_t> sums = {0};
  for (const std::int64_t length : lengths) sums.push_back(sums.back() + length);
  return int_buffer(sums);
}

std::int64_t Layer::total_q() const { return sum(shape.seqlens_q) + shape.padding_q; }
std::int64_t Layer::total_k() const { return sum(shape.seqlens_k); }

std::int64_t Layer::max_blocks() const {
  return ceil_div(*std::max_element(shape.seqlens_k.begin(), shape.seqlens_k.end()), shape.block_size);
}

std::size_t Layer::sequence_of(std::int64_t row) const {
  std::size_t b = 0;
  while (b < shape.seqlens_q.size() && row >= shape.seqlens_q[b]) row -= shape.seqlens_q[b++];
  return b;
}

std::int64_t Layer::position(std::int64_t row) const {
  const std::size_t b = sequence_of(row);
  if (b == shape.seqlens_q.size()) return -1;
  const std::int64_t end = std::accumulate(
      shape.seqlens_q.begin(), shape.seqlens_q.begin() + static_cast<std::ptrdiff_t>(b) + 1, std::int64_t{0});
  return shape.seqlens_k[b] - (end - row);
}

std::int64_t Layer::visible_blocks(std::int64_t row) const {
  const std::int64_t at = position(row);
  return at < 0 ? 0 : at / shape.block_size + 1;
}

openmsa_dtype Layer::kv_dtype() const { return config.kv_dtype == 0 ? config.dtype : config.kv_dtype; }
openmsa_dtype Layer::index_dtype() const { return config.index_dtype == 0 ? config.dtype : config.index_dtype; }

Layer& Layer::add(TensorMap more) {
  more.merge(tensors);
  tensors = std::move(more);
  return *this;
}

Layer Layer::on(openmsa_backend backend) const {
  Layer result = *this;
  result.config.backend = backend;
  return result;
}

Buffer random_buffer(openmsa_dtype dtype, const Shape& shape, std::mt19937_64& random) {
  std::normal_distribution<double> normal;
  Buffer result(dtype, shape);
  for (std::int64_t i = 0; i < result.size(); ++i) result.set(i, normal(random));
  return result;
}

Layer make_layer(const LayerShape& shape, std::uint64_t seed, std::uint64_t page_seed) {
  std::mt19937_64 random(seed);
  Layer layer{shape, layer_config(shape), {}};
  const std::int64_t total_q = layer.total_q(), total_k = layer.total_k();
  const auto add = [&](const char* name, const Shape& extents) {
    layer.tensors[name] = random_buffer(shape.dtype, extents, random);
  };
  add("q", {total_q, shape.num_heads_q, shape.head_dim});
  add("k", {total_k, shape.num_heads_kv, shape.head_dim});
  add("v", {total_k, shape.num_heads_kv, shape.head_dim});
  add("index_q", {total_q, shape.num_heads_kv, shape.index_dim});
  add("index_k", {total_k, shape.index_dim});
  add("d_o", {total_q, shape.num_heads_q, shape.head_dim});
  layer.tensors["cu_seqlens_q"] = prefix_sums(shape.seqlens_q);
  layer.tensors["cu_seqlens_k"] = prefix_sums(shape.seqlens_k);
  layer.tensors["seqlens_k"] = int_buffer(shape.seqlens_k);
  if (shape.page_size > 0) {
    add_pages(layer, page_seed);
  } else if (layer.index_dtype() == OPENMSA_FLOAT8_E4M3) {
    round_index_k(layer, seed);
  }
  return layer;
}

Layer excerpt(const Layer& layer, std::size_t b, std::int64_t begin, std::int64_t end) {
  std::int64_t q_begin = 0, k_begin = 0;
  for (std::size_t i = 0; i < b; ++i) {
    q_begin += layer.shape.seqlens_q[i];
    k_begin += layer.shape.seqlens_k[i];
  }
  LayerShape shape = layer.shape;
  const std::int64_t seqlen_k = shape.seqlens_k[b] - shape.seqlens_q[b] + end;
  shape.seqlens_q = {end - begin};
  shape.seqlens_k = {seqlen_k};
  shape.padding_q = 0;
  Layer result = make_layer(shape);
  result.config.backend = layer.config.backend;
  result.config.softmax_scale = layer.config.softmax_scale;
  for (const char* name : {"q", "index_q"}) {
    result.tensors[name] = rows(layer.tensors.at(name), q_begin + begin, end - begin);
  }
  for (const char* name : {"k", "v", "index_k"}) {
    result.tensors[name] = rows(layer.tensors.at(name), k_begin, seqlen_k);
  }
  if (shape.scales != Scales::kNone && layer.index_dtype() == OPENMSA_FLOAT8_E4M3) {
    const Buffer& scale = layer.tensors.at("index_k_scale");
    result.tensors["index_k_scale"] = shape.scales == Scales::kOne ? scale : rows(scale, k_begin, seqlen_k);
  }
  return result;
}

Layer with_lengths(Layer layer, std::vector<std::int64_t> seqlens_q, std::vector<std::int64_t> seqlens_k) {
  const std::int64_t total_q = layer.total_q();
  TensorMap& tensors = layer.tensors;
  tensors["cu_seqlens_q"] = prefix_sums(seqlens_q);
  tensors["cu_seqlens_k"] = prefix_sums(seqlens_k);
  tensors["seqlens_k"] = int_buffer(seqlens_k);
  layer.config.max_batch = std::max(layer.config.max_batch, static_cast<std::int64_t>(seqlens_k.size()));
  layer.config.max_seqlen_k =
      std::max(layer.config.max_seqlen_k, *std::max_element(seqlens_k.begin(), seqlens_k.end()));
  if (layer.shape.page_size > 0) {
    Buffer& table = tensors.at("block_table");
    for (std::int64_t b = 0; b < table.shape()[0]; ++b) {
      const std::int64_t used = ceil_div(seqlens_k[static_cast<std::size_t>(b)], layer.shape.page_size);
      for (std::int64_t p = used; p < table.shape()[1]; ++p) table.set({b, p}, -1);
    }
  }
  layer.shape.seqlens_q = std::move(seqlens_q);
  layer.shape.seqlens_k = std::move(seqlens_k);
  layer.shape.padding_q = 0;
  layer.shape.padding_q = total_q - layer.total_q();
  return layer;
}

Layer in_pages(Layer layer, std::int32_t page_size, std::uint64_t page_seed) {
  layer.shape.page_size = layer.config.page_size = page_size;
  add_pages(layer, page_seed);
  return layer;
}

Layer with_new_keys(Layer layer, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  for (const char* name : {"k", "v", "index_k"}) {
    Shape shape = layer.tensors.at(name).shape();
    shape[0] = layer.total_q();
    layer.tensors[name] = random_buffer(layer.config.dtype, shape, random);
  }
  return layer;
}

}  // namespace openmsa::judge
