#include "support/serving_memory.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace openmsa::test {
namespace {

constexpr const char* kCaches[] = {"k_cache", "v_cache", "index_k_cache"};

/// Every slot with as many new tokens as it may have, one of them with a chunk: the shapes that all steps share.
Layer full_layer(LayerShape shape, const ServingLimits& limits) {
  std::vector<std::int64_t> lengths(static_cast<std::size_t>(limits.slots), limits.max_new);
  lengths.front() = std::max(limits.max_new, limits.max_chunk);
  shape.page_size = static_cast<std::int32_t>(limits.page_size);
  shape.seqlens_q = shape.seqlens_k = lengths;
  Layer layer = with_new_keys(make_layer(shape), 1);
  layer.config.max_seqlen_k = limits.max_pages * limits.page_size;
  layer.tensors["block_table"] = Buffer(OPENMSA_INT32, {limits.slots, limits.max_pages});
  for (const char* name : kCaches) {
    Shape pages = layer.tensors.at(name).shape();
    pages[0] = limits.num_pages;
    layer.tensors[name] = Buffer(shape.dtype, pages);
  }
  return layer;
}

}  // namespace

ServingMemory::ServingMemory(LayerShape shape, const ServingLimits& limits, std::uint64_t seed)
    : limits_(limits),
      random_(seed),
      noise_(random_buffer(shape.dtype, {1 << 18}, random_)),
      layer_(full_layer(std::move(shape), limits)) {
  for (const char* name : kCaches) caches_[name] = layer_.tensors.at(name);
}

void ServingMemory::apply(const ServingStep& step) {
  for (auto& [name, cache] : caches_) {
    for (const std::int64_t number : step.returned) std::memset(page(cache, number), 0xff, page_bytes(cache));
    const std::size_t token_bytes = page_bytes(cache) / static_cast<std::size_t>(limits_.page_size);
    for (const ServingStep::Fill& fill : step.filled) {
      const std::size_t bytes = token_bytes * static_cast<std::size_t>(fill.tokens);
      std::memcpy(page(cache, fill.page), noise(bytes), bytes);
    }
  }
  layer_ = with_lengths(std::move(layer_), step.seqlens_q, step.seqlens_k);
  layer_.tensors["block_table"] = int_buffer(step.block_table, {limits_.slots, limits_.max_pages});
  for (const char* name : {"q", "index_q", "k", "v", "index_k"}) {
    const Buffer& rows = layer_.tensors.at(name);
    std::memcpy(rows.view().data, noise(rows.bytes().size()), rows.bytes().size());
  }
}

std::byte* ServingMemory::page(Buffer& cache, std::int64_t number) const {
  return static_cast<std::byte*>(cache.view().data) + static_cast<std::size_t>(number) * page_bytes(cache);
}

std::size_t ServingMemory::page_bytes(const Buffer& cache) const {
  return cache.bytes().size() / static_cast<std::size_t>(limits_.num_pages);
}

/// Normal numbers, other ones each time.
const std::byte* ServingMemory::noise(std::size_t bytes) {
  const std::size_t last = noise_.bytes().size() - bytes;
  return noise_.bytes().data() + random_() % (last / 16) * 16;
}

}  // namespace openmsa::test
