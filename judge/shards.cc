#include "judge/shards.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <utility>

namespace openmsa::judge {
namespace {

constexpr double kNoPage = 1 << 30;

/// Pages of the whole layer, in the order in which each sequence's row of the shard's table lists them.
std::vector<std::vector<std::int64_t>> held_pages(const Layer& layer, std::int32_t count, std::int32_t rank) {
  const Buffer& table = layer.tensors.at("block_table");
  const std::int64_t pages_per_block = layer.shape.block_size / layer.shape.page_size;
  std::vector<std::vector<std::int64_t>> held;
  for (std::size_t b = 0; b < layer.shape.seqlens_k.size(); ++b) {
    held.emplace_back();
    for (std::int64_t page = 0; page < ceil_div(layer.shape.seqlens_k[b], layer.shape.page_size); ++page) {
      if (page / pages_per_block % count != rank) continue;
      held.back().push_back(static_cast<std::int64_t>(table.at({static_cast<std::int64_t>(b), page})));
    }
  }
  return held;
}

/// Copies `tensor`, with `axis` counting pages (or the tokens in them), so that its page pages[i] becomes page i + 1.
Buffer gathered(const Buffer& tensor, std::size_t axis, std::int64_t num_pages,
                const std::vector<std::int64_t>& pages) {
  Shape shape = tensor.shape();
  const std::int64_t tokens = shape[axis] / num_pages;  // 1 where the axis counts pages
  shape[axis] = (std::ssize(pages) + 1) * tokens;
  Buffer result(tensor.dtype(), shape);
  std::vector<std::byte> bytes = result.bytes();
  std::int64_t outer = 1, inner = static_cast<std::int64_t>(openmsa_dtype_bytes(tensor.dtype())) * tokens;
  for (std::size_t d = 0; d < axis; ++d) outer *= shape[d];
  for (std::size_t d = axis + 1; d < shape.size(); ++d) inner *= shape[d];
  for (std::int64_t o = 0; o < outer; ++o) {
    for (std::int64_t i = 0; i < std::ssize(pages); ++i) {
      const std::int64_t from = o * num_pages + pages[static_cast<std::size_t>(i)],
                         to = o * (std::ssize(pages) + 1) + i + 1;
      std::copy_n(tensor.bytes().begin() + from * inner, inner, bytes.begin() + to * inner);
    }
  }
  result.assign_bytes(std::move(bytes));
  return result;
}

}  // namespace

Layer shard_of(const Layer& layer, std::int32_t count, std::int32_t rank) {
  Layer shard = layer;
  shard.config.shard_count = count;
  shard.config.shard_rank = rank;
  std::vector<std::int64_t> pages;
  std::size_t most = 1;
  const auto held = held_pages(layer, count, rank);
  for (const auto& row : held) {
    pages.insert(pages.end(), row.begin(), row.end());
    most = std::max(most, row.size());
  }
  std::reverse(pages.begin(), pages.end());
  Buffer table(OPENMSA_INT32, {std::ssize(held), static_cast<std::int64_t>(most)});
  table.fill(kNoPage);
  std::int64_t next = std::ssize(pages);
  for (std::size_t b = 0; b < held.size(); ++b) {
    for (std::size_t p = 0; p < held[b].size(); ++p) {
      table.set({static_cast<std::int64_t>(b), static_cast<std::int64_t>(p)}, static_cast<double>(next--));
    }
  }
  shard.tensors["block_table"] = std::move(table);
  const std::int64_t num_pages = layer.tensors.at("k_cache").shape()[0];
  for (auto& [name, tensor] : shard.tensors) {
    const bool is_scale = name.ends_with("_scale") && tensor.shape() != Shape{1};
    if (name.ends_with("_cache")) tensor = gathered(tensor, 0, num_pages, pages);
    if (is_scale) tensor = gathered(tensor, tensor.shape().size() - 1, num_pages, pages);
  }
  return shard;
}

Buffer stacked(const std::vector<Buffer>& slices) {
  Shape shape = slices.at(0).shape();
  shape.insert(shape.begin(), std::ssize(slices));
  std::vector<std::byte> bytes;
  for (const Buffer& slice : slices) bytes.insert(bytes.end(), slice.bytes().begin(), slice.bytes().end());
  Buffer result(slices[0].dtype(), shape);
  result.assign_bytes(std::move(bytes));
  return result;
}

Candidate decoded(std::int64_t candidate) {
  constexpr std::int32_t kMost = std::numeric_limits<std::int32_t>::max();
  if (candidate == std::numeric_limits<std::int64_t>::min())
    return {true, -std::numeric_limits<double>::infinity(), -1};
  const auto key = static_cast<std::int32_t>(candidate >> 32);
  const std::int64_t block = 0xffffffff - (candidate & 0xffffffff);
  if (key == -kMost) return {false, std::numeric_limits<double>::quiet_NaN(), block};
  return {false, double(std::bit_cast<float>(key < 0 ? key ^ kMost : key)), block};
}

std::vector<Candidate> candidate_row(const Buffer& candidates, std::int64_t head, std::int64_t row) {
  if (candidates.dtype() != OPENMSA_INT64) throw std::logic_error("expected candidates");
  const std::int64_t rows = candidates.shape()[1], topk = candidates.shape()[2];
  std::vector<Candidate> result;
  for (std::int64_t slot = 0; slot < topk; ++slot) {
    std::int64_t candidate = 0;
    std::memcpy(&candidate, candidates.bytes().data() + ((head * rows + row) * topk + slot) * 8, 8);
    result.push_back(decoded(candidate));
  }
  return result;
}

Buffer candidate_scores(const Buffer& candidates) {
  std::vector<double> scores;
  for (std::int64_t head = 0; head < candidates.shape()[0]; ++head) {
    for (std::int64_t row = 0; row < candidates.shape()[1]; ++row) {
      for (const Candidate& candidate : candidate_row(candidates, head, row)) scores.push_back(candidate.score);
    }
  }
  return Buffer(OPENMSA_FLOAT64, candidates.shape(), scores);
}

Buffer comparable_scores(openmsa_backend backend, const Buffer& candidates, const Buffer& expected) {
  Buffer scores = candidate_scores(candidates);
  if (backend != OPENMSA_BACKEND_CUDA) return scores;
  const std::int64_t topk = candidates.shape()[2];
  for (std::int64_t first = 0; first < scores.size(); first += topk) {
    const auto largest = [&](const Buffer& of) {
      double result = 0;
      for (std::int64_t i = first; i < first + topk; ++i) {
        if (std::isfinite(of[i])) result = std::max(result, std::abs(of[i]));
      }
      return result;
    };
    const double mine = largest(scores), factor = mine > 0 ? largest(expected) / mine : 1;
    for (std::int64_t i = first; i < first + topk; ++i) scores.set(i, scores[i] * factor);
  }
  return scores;
}

}  // namespace openmsa::judge
