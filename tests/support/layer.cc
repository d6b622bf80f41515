#include "support/layer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <utility>

#include "api/operations.h"
#include "core/plan.h"

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

openmsa_dtype kv_dtype(const Layer& layer) {
  return layer.config.kv_dtype == 0 ? layer.config.dtype : layer.config.kv_dtype;
}

openmsa_dtype index_dtype(const Layer& layer) {
  return layer.config.index_dtype == 0 ? layer.config.dtype : layer.config.index_dtype;
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
  config.max_batch = static_cast<std::int64_t>(shape.seqlens_k.size());
  config.max_total_q = std::max<std::int64_t>(1, sum(shape.seqlens_q) + shape.padding_q);
  config.max_seqlen_k = std::max<std::int64_t>(1, *std::max_element(shape.seqlens_k.begin(), shape.seqlens_k.end()));
  return config;
}

/// Random numbers far from 1: 1/4 to 1/2, or 2 to 4.
double random_scale(std::mt19937_64& random) {
  const double exponent = std::uniform_real_distribution<double>(1, 2)(random);
  return std::exp2(random() % 2 == 0 ? exponent : -exponent);
}

/// Scales for `keys` of `slots` tokens: absent unless they are fp8; those per token poisoned.
Buffer make_scale(const Buffer& keys, std::int64_t slots, Scales scales, std::mt19937_64& random) {
  if (keys.dtype() != OPENMSA_FLOAT8_E4M3 || scales == Scales::kNone) return {};
  if (scales == Scales::kOne) return Buffer(OPENMSA_FLOAT32, {1}, {random_scale(random)});
  const bool has_heads = keys.shape().size() == 4;
  return Buffer(OPENMSA_FLOAT32, has_heads ? Shape{keys.shape()[2], slots} : Shape{slots});
}

/// Divides row `row` of `keys`, [tokens, heads, channels] or [tokens, channels], by its scales and stores it as token
/// `slot` of `to`. Scales per token are made up here.
void store_token(const Buffer& keys, std::int64_t row, Buffer& to, std::int64_t slot, Buffer& scale,
                 std::mt19937_64& random) {
  const std::int64_t channels = keys.shape().back(), heads = keys.shape().size() == 3 ? keys.shape()[1] : 1;
  for (std::int64_t h = 0; h < heads; ++h) {
    const std::int64_t slots = scale.size() / heads;  // 0: one scale for all, or none
    const bool is_per_token = scale.shape() != Shape{} && scale.shape() != Shape{1};
    if (is_per_token) scale.set(h * slots + slot, random_scale(random));
    const double divisor = is_per_token ? scale[h * slots + slot] : scale.shape() == Shape{1} ? scale[0] : 1;
    for (std::int64_t c = 0; c < channels; ++c) {
      to.set((slot * heads + h) * channels + c, keys[(row * heads + h) * channels + c] / divisor);
    }
  }
}

/// The pages of each sequence, in random order. Page 0 and two more belong to nobody.
struct PageTable {
  std::vector<std::vector<std::int64_t>> pages;
  std::int64_t num_pages;

  PageTable(const LayerShape& shape, std::mt19937_64& random) : num_pages(3) {
    for (const std::int64_t length : shape.seqlens_k) num_pages += core::ceil_div(length, shape.page_size);
    std::vector<std::int64_t> order(static_cast<std::size_t>(num_pages - 1));
    std::iota(order.begin(), order.end(), 1);
    std::shuffle(order.begin(), order.end(), random);
    auto next = order.begin();
    for (const std::int64_t length : shape.seqlens_k) {
      const std::int64_t count = core::ceil_div(length, shape.page_size);
      pages.emplace_back(next, next + count);
      next += count;
    }
  }

  Buffer block_table() const {
    std::size_t most = 1;
    for (const auto& row : pages) most = std::max(most, row.size());
    Buffer table(OPENMSA_INT32, {static_cast<std::int64_t>(pages.size()), static_cast<std::int64_t>(most)});
    table.fill(-1);
    for (std::size_t b = 0; b < pages.size(); ++b) {
      for (std::size_t p = 0; p < pages[b].size(); ++p) {
        table.set({static_cast<std::int64_t>(b), static_cast<std::int64_t>(p)}, static_cast<double>(pages[b][p]));
      }
    }
    return table;
  }
};

/// The layer's keys `name` in a cache, `name`_cache, with their scales.
void add_cache(Layer& layer, const PageTable& table, const std::string& name, openmsa_dtype dtype,
               std::mt19937_64& random) {
  const std::int64_t page_size = layer.shape.page_size;
  const Buffer& keys = layer.tensors.at(name);
  Shape shape = keys.shape();
  shape[0] = page_size;
  shape.insert(shape.begin(), table.num_pages);
  Buffer cache(dtype, shape);
  Buffer scale = make_scale(cache, table.num_pages * page_size, layer.shape.scales, random);
  std::int64_t row = 0;
  for (std::size_t b = 0; b < table.pages.size(); ++b) {
    for (std::int64_t j = 0; j < layer.shape.seqlens_k[b]; ++j) {
      const std::int64_t slot = table.pages[b][static_cast<std::size_t>(j / page_size)] * page_size + j % page_size;
      store_token(keys, row++, cache, slot, scale, random);
    }
  }
  layer.tensors[name + "_cache"] = std::move(cache);
  if (!scale.shape().empty()) layer.tensors[name + "_scale"] = std::move(scale);
}

/// Caches and block_table that hold the layer's keys.
void add_pages(Layer& layer, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  const PageTable table(layer.shape, random);
  for (const char* name : {"k", "v"}) add_cache(layer, table, name, kv_dtype(layer), random);
  add_cache(layer, table, "index_k", index_dtype(layer), random);
  layer.tensors["block_table"] = table.block_table();
}

/// Contiguous index_k in fp8.
void round_index_k(Layer& layer, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  const Buffer keys = layer.tensors.at("index_k");
  Buffer rounded(OPENMSA_FLOAT8_E4M3, keys.shape());
  Buffer scale = make_scale(rounded, keys.shape()[0], layer.shape.scales, random);
  for (std::int64_t j = 0; j < keys.shape()[0]; ++j) store_token(keys, j, rounded, j, scale, random);
  layer.tensors["index_k"] = std::move(rounded);
  if (!scale.shape().empty()) layer.tensors["index_k_scale"] = std::move(scale);
}

std::int64_t num_pages(const Layer& layer) {
  const auto cache = layer.tensors.find("k_cache");
  return cache == layer.tensors.end() ? 0 : cache->second.shape()[0];
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
    case api::Dim::kPageSize:
      return layer.shape.page_size;
    case api::Dim::kNumPages:
      return num_pages(layer);
    case api::Dim::kKeyTokens:
      return num_pages(layer) * layer.shape.page_size;
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
    case api::Kind::kScale:
      return OPENMSA_FLOAT32;
    case api::Kind::kKvCache:
      return kv_dtype(layer);
    case api::Kind::kIndexKCache:
      return index_dtype(layer);
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
  if (shape.page_size > 0) {
    add_pages(layer, page_seed);
  } else if (index_dtype(layer) == OPENMSA_FLOAT8_E4M3) {
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
  result.config.softmax_scale = layer.config.softmax_scale;
  for (const char* name : {"q", "index_q"}) {
    result.tensors[name] = rows(layer.tensors.at(name), q_begin + begin, end - begin);
  }
  for (const char* name : {"k", "v", "index_k"}) {
    result.tensors[name] = rows(layer.tensors.at(name), k_begin, seqlen_k);
  }
  if (shape.scales != Scales::kNone && index_dtype(layer) == OPENMSA_FLOAT8_E4M3) {
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
  const api::Operation operation = api::operation(op, layer.config);
  TensorMap outputs;
  for (const api::Field& field : api::fields()) {
    if (!api::contains(operation.writes | operation.may_write, field.member)) continue;
    if (field.kind == api::Kind::kScale && layer.shape.scales != Scales::kPerToken) continue;  // read, or absent
    const bool ablation = op == OPENMSA_OP_KL_LOSS && (field.member == &Tensors::d_q || field.member == &Tensors::d_k);
    if (names.empty() ? ablation : std::find(names.begin(), names.end(), field.name) == names.end()) continue;
    Shape shape;
    for (int d = 0; d < field.rank; ++d) shape.push_back(extent(layer, field.shape[d]));
    outputs[field.name] = Buffer(output_dtype(layer, field.kind), shape);
  }
  return outputs;
}

Tensors gather(const Layer& layer, openmsa_op op, const TensorMap& outputs) {
  const api::Operation operation = api::operation(op, layer.config);
  Tensors result = openmsa::tensors();
  for (const api::Field& field : api::fields()) {
    const auto read = layer.tensors.find(field.name);
    if (api::contains(operation.reads | operation.may_read, field.member) && read != layer.tensors.end()) {
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
