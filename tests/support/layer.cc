#include "support/layer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <utility>

#include "api/operations.h"
#include "plan/plan.h"

namespace openmsa::test {
namespace {

std::int64_t sum(const std::vector<std::int64_t>& values) {
  return std::accumulate(values.begin(), values.end(), std::int64_t{0});
}

Buffer prefix_sums(const std::vector<std::int64_t>& lengths) {
  std::vector<std::int64_t> sums = {0};
  for (const std::int64_t length : lengths) sums.push_back(sums.back() + length);
  return int_buffer(sums);
}

bool is_reference(const Layer& layer) { return core::is_reference(layer.config.backend); }

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
  config.max_batch = static_cast<std::int64_t>(shape.seqlens_k.size());
  config.max_total_q = std::max<std::int64_t>(1, sum(shape.seqlens_q) + shape.padding_q);
  config.max_seqlen_k = std::max<std::int64_t>(1, *std::max_element(shape.seqlens_k.begin(), shape.seqlens_k.end()));
  return config;
}

/// Copies rows [from, from + tokens) of `keys` [total_k, ...] to the pages of one sequence.
void scatter(const Buffer& keys, std::int64_t from, std::int64_t tokens, const std::vector<std::int64_t>& pages,
             std::int64_t page_size, Buffer& cache) {
  const std::int64_t row = keys.size() / std::max<std::int64_t>(1, keys.shape()[0]);
  for (std::int64_t j = 0; j < tokens; ++j) {
    const std::int64_t slot = pages[static_cast<std::size_t>(j / page_size)] * page_size + j % page_size;
    for (std::int64_t c = 0; c < row; ++c) cache.set(slot * row + c, keys[(from + j) * row + c]);
  }
}

/// Caches and block_table that hold the layer's keys. Page 0 and two more belong to nobody.
void add_pages(Layer& layer, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  const LayerShape& shape = layer.shape;
  const std::int64_t page_size = shape.page_size;
  std::vector<std::int64_t> counts;
  for (const std::int64_t length : shape.seqlens_k) counts.push_back(core::ceil_div(length, page_size));
  const std::int64_t max_pages = std::max<std::int64_t>(1, *std::max_element(counts.begin(), counts.end()));
  const std::int64_t num_pages = sum(counts) + 3;
  std::vector<std::int64_t> order(static_cast<std::size_t>(num_pages - 1));
  std::iota(order.begin(), order.end(), 1);
  std::shuffle(order.begin(), order.end(), random);

  TensorMap& tensors = layer.tensors;
  tensors["k_cache"] = Buffer(shape.dtype, {num_pages, page_size, shape.num_heads_kv, shape.head_dim});
  tensors["v_cache"] = Buffer(shape.dtype, {num_pages, page_size, shape.num_heads_kv, shape.head_dim});
  tensors["index_k_cache"] = Buffer(shape.dtype, {num_pages, page_size, shape.index_dim});
  Buffer table = Buffer(OPENMSA_INT32, {static_cast<std::int64_t>(counts.size()), max_pages});
  table.fill(-1);
  auto next_page = order.begin();
  std::int64_t first_row = 0;
  for (std::size_t b = 0; b < counts.size(); ++b) {
    const std::vector<std::int64_t> pages(next_page, next_page + counts[b]);
    next_page += counts[b];
    for (std::size_t p = 0; p < pages.size(); ++p) {
      table.set({static_cast<std::int64_t>(b), static_cast<std::int64_t>(p)}, static_cast<double>(pages[p]));
    }
    scatter(tensors["k"], first_row, shape.seqlens_k[b], pages, page_size, tensors["k_cache"]);
    scatter(tensors["v"], first_row, shape.seqlens_k[b], pages, page_size, tensors["v_cache"]);
    scatter(tensors["index_k"], first_row, shape.seqlens_k[b], pages, page_size, tensors["index_k_cache"]);
    first_row += shape.seqlens_k[b];
  }
  tensors["block_table"] = std::move(table);
}

std::int64_t extent(const Layer& layer, api::Dim dim) {
  switch (dim) {
    case api::Dim::kTotalQ:
      return layer.total_q();
    case api::Dim::kTotalK:
      return layer.total_k();
    case api::Dim::kNumBlocks:
      return layer.max_blocks();
    case api::Dim::kHeadsQ:
      return layer.shape.num_heads_q;
    case api::Dim::kHeadsKv:
      return layer.shape.num_heads_kv;
    case api::Dim::kHeadDim:
      return layer.shape.head_dim;
    case api::Dim::kIndexDim:
      return layer.shape.index_dim;
    case api::Dim::kTopk:
      return layer.shape.topk;
    default:
      return 1;
  }
}

openmsa_dtype output_dtype(const Layer& layer, api::Kind kind) {
  switch (kind) {
    case api::Kind::kInt32:
      return OPENMSA_INT32;
    case api::Kind::kFigure:
      return is_reference(layer) ? OPENMSA_FLOAT64 : OPENMSA_FLOAT32;
    default:
      return is_reference(layer) && layer.config.dtype != OPENMSA_FLOAT64 ? OPENMSA_FLOAT32 : layer.config.dtype;
  }
}

/// 64-byte aligned memory of exactly `bytes`, poisoned, so that a sanitizer sees a step past its end.
class PoisonedWorkspace {
 public:
  explicit PoisonedWorkspace(std::size_t bytes) : bytes_(bytes) {
    if (bytes == 0) return;
    memory_.reset(static_cast<std::byte*>(::operator new (bytes, std::align_val_t{64})));
    std::memset(memory_.get(), 0xff, bytes);
  }
  openmsa_workspace get() const { return {memory_.get(), bytes_, nullptr}; }

 private:
  struct Free {
    void operator()(std::byte* memory) const { ::operator delete (memory, std::align_val_t{64}); }
  };
  std::unique_ptr<std::byte, Free> memory_;
  std::size_t bytes_;
};

}  // namespace

std::int64_t Layer::total_q() const { return sum(shape.seqlens_q) + shape.padding_q; }
std::int64_t Layer::total_k() const { return sum(shape.seqlens_k); }

std::int64_t Layer::max_blocks() const {
  return core::ceil_div(*std::max_element(shape.seqlens_k.begin(), shape.seqlens_k.end()), shape.block_size);
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

Layer& Layer::add(TensorMap more) {
  for (auto& [name, buffer] : more) tensors[name] = std::move(buffer);
  return *this;
}

Layer Layer::on(openmsa_backend backend) const {
  Layer result = *this;
  result.config.backend = backend;
  return result;
}

Buffer random_buffer(openmsa_dtype dtype, Shape shape, std::mt19937_64& random) {
  std::normal_distribution<double> normal;
  Buffer result(dtype, std::move(shape));
  for (std::int64_t i = 0; i < result.size(); ++i) result.set(i, normal(random));
  return result;
}

Layer make_layer(const LayerShape& shape, std::uint64_t seed, std::uint64_t page_seed) {
  std::mt19937_64 random(seed);
  Layer layer{shape, layer_config(shape), {}};
  const std::int64_t total_q = layer.total_q(), total_k = layer.total_k();
  const auto add = [&](const char* name, Shape extents) {
    layer.tensors[name] = random_buffer(shape.dtype, std::move(extents), random);
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
  if (shape.page_size > 0) add_pages(layer, page_seed);
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
  result.config.softmax_scale = layer.config.softmax_scale;
  for (const char* name : {"q", "index_q"}) {
    result.tensors[name] = rows(layer.tensors.at(name), q_begin + begin, end - begin);
  }
  for (const char* name : {"k", "v", "index_k"}) {
    result.tensors[name] = rows(layer.tensors.at(name), k_begin, seqlen_k);
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
      const std::int64_t used = core::ceil_div(seqlens_k[static_cast<std::size_t>(b)], layer.shape.page_size);
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

TensorMap poisoned_outputs(const Layer& layer, openmsa_op op, const std::vector<std::string>& names) {
  const api::Operation operation = api::operation(op, layer.config.page_size > 0);
  TensorMap outputs;
  for (std::uint32_t id = 0; id < api::kFieldCount; ++id) {
    const api::Field& field = api::fields()[id];
    if (!api::contains(operation.writes | operation.writes_optional, id)) continue;
    const bool ablation = op == OPENMSA_OP_KL_LOSS && (id == api::kDQ || id == api::kDK);
    if (names.empty() ? ablation : std::find(names.begin(), names.end(), field.name) == names.end()) continue;
    Shape shape;
    for (int d = 0; d < field.rank; ++d) shape.push_back(extent(layer, field.shape[d]));
    outputs[field.name] = Buffer(output_dtype(layer, field.kind), shape);
  }
  return outputs;
}

Tensors gather(const Layer& layer, openmsa_op op, const TensorMap& outputs) {
  const api::Operation operation = api::operation(op, layer.config.page_size > 0);
  Tensors result = openmsa::tensors();
  for (std::uint32_t id = 0; id < api::kFieldCount; ++id) {
    const api::Field& field = api::fields()[id];
    const auto read = layer.tensors.find(field.name);
    if (api::contains(operation.reads | operation.reads_optional, id) && read != layer.tensors.end()) {
      result.*field.member = read->second.view();
    }
    const auto written = outputs.find(field.name);
    if (written != outputs.end()) result.*field.member = written->second.view();
  }
  return result;
}

void run_into(const Layer& layer, openmsa_op op, TensorMap& outputs) {
  const Plan plan(layer.config);
  const PoisonedWorkspace workspace(plan.workspace_bytes(op));
  plan.run(op, gather(layer, op, outputs), workspace.get());
}

TensorMap run(const Layer& layer, openmsa_op op, const std::vector<std::string>& names) {
  TensorMap outputs = poisoned_outputs(layer, op, names);
  run_into(layer, op, outputs);
  return outputs;
}

}  // namespace openmsa::test
