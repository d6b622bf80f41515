#include "judge/pages.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

namespace openmsa::judge {
namespace {

/// Random numbers far from 1: 1/4 to 1/2, or 2 to 4.
double random_scale(std::mt19937_64& random) {
  const double exponent = std::uniform_real_distribution<double>(1, 2)(random);
  return std::exp2(random() % 2 == 0 ? exponent : -exponent);
}

/// Scales for `keys`, `count` of them where there is more than one: absent unless keys are fp8; poisoned.
Buffer make_scale(const Buffer& keys, std::int64_t count, Scales scales, std::mt19937_64& random) {
  if (keys.dtype() != OPENMSA_FLOAT8_E4M3 || scales == Scales::kNone) return {};
  if (scales == Scales::kOne) return Buffer(OPENMSA_FLOAT32, {1}, {random_scale(random)});
  const bool has_heads = keys.shape().size() == 4;
  return Buffer(OPENMSA_FLOAT32, has_heads ? Shape{keys.shape()[2], count} : Shape{count});
}

/// Divides row `row` of `keys`, [tokens, heads, channels] or [tokens, channels], by its scales and stores it as token
/// `slot` of `to`. Of many scales it has number `place`, made up here where it has none yet.
void store_token(const Buffer& keys, std::int64_t row, Buffer& to, std::int64_t slot, Buffer& scale, std::int64_t place,
                 std::mt19937_64& random) {
  const std::int64_t channels = keys.shape().back(), heads = keys.shape().size() == 3 ? keys.shape()[1] : 1;
  for (std::int64_t h = 0; h < heads; ++h) {
    const bool has_many = !scale.shape().empty() && scale.shape() != Shape{1};
    const std::int64_t own = has_many ? h * scale.shape().back() + place : 0;
    if (has_many && std::isnan(scale[own])) scale.set(own, random_scale(random));
    const double divisor = scale.shape().empty() ? 1 : scale[own];
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
    for (const std::int64_t length : shape.seqlens_k) num_pages += ceil_div(length, shape.page_size);
    std::vector<std::int64_t> order(static_cast<std::size_t>(num_pages - 1));
    std::iota(order.begin(), order.end(), 1);
    std::shuffle(order.begin(), order.end(), random);
    auto next = order.begin();
    for (const std::int64_t length : shape.seqlens_k) {
      const std::int64_t count = ceil_div(length, shape.page_size);
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
  const bool is_per_block = layer.shape.scales == Scales::kPerBlock && keys.shape().size() == 2;
  const std::int64_t num_scales = table.num_pages * (is_per_block ? 1 : page_size);
  Buffer scale = make_scale(cache, num_scales, layer.shape.scales, random);
  std::int64_t row = 0;
  for (std::size_t b = 0; b < table.pages.size(); ++b) {
    const auto page = [&](std::int64_t j) { return table.pages[b][static_cast<std::size_t>(j / page_size)]; };
    for (std::int64_t j = 0; j < layer.shape.seqlens_k[b]; ++j) {
      const std::int64_t slot = page(j) * page_size + j % page_size;
      const std::int64_t place = is_per_block ? page(j - j % layer.shape.block_size) : slot;
      store_token(keys, row++, cache, slot, scale, place, random);
    }
  }
  layer.tensors[name + "_cache"] = std::move(cache);
  if (!scale.shape().empty()) layer.tensors[name + "_scale"] = std::move(scale);
}

}  // namespace

void add_pages(Layer& layer, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  const PageTable table(layer.shape, random);
  for (const char* name : {"k", "v"}) add_cache(layer, table, name, layer.kv_dtype(), random);
  add_cache(layer, table, "index_k", layer.index_dtype(), random);
  layer.tensors["block_table"] = table.block_table();
}

void round_index_k(Layer& layer, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  const Buffer keys = layer.tensors.at("index_k");
  Buffer rounded(OPENMSA_FLOAT8_E4M3, keys.shape());
  Buffer scale = make_scale(rounded, keys.shape()[0], layer.shape.scales, random);
  for (std::int64_t j = 0; j < keys.shape()[0]; ++j) store_token(keys, j, rounded, j, scale, j, random);
  layer.tensors["index_k"] = std::move(rounded);
  if (!scale.shape().empty()) layer.tensors["index_k_scale"] = std::move(scale);
}

}  // namespace openmsa::judge
