// Offsets that do not fit into 32 bits.
#include "cuda/support/cases.h"
#include "cuda/support/device_call.h"
#include "cuda/support/hopper.h"
#include "pitfalls/fixture.h"
#include "support/append_kv.h"

namespace openmsa::test {
namespace {

/// Whether the device has `bytes` to spare beside what a call takes.
bool has_room(std::size_t bytes) {
  std::size_t free = 0, total = 0;
  require_cuda(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return free >= bytes + (std::size_t{1} << 30);
}

/// Four million keys as slices of one row of a fused projection: token times stride exceeds 2^31 elements. The
/// parameter is a number of queries.
class HugeContext : public OnHopperWith<std::int64_t> {
 protected:
  static constexpr std::int64_t kKeys = std::int64_t{1} << 22, kRowChannels = 640, kDim = 64, kBlock = 128;
  static constexpr std::int64_t kTile = 4096;  // keys that repeat
  static constexpr std::int64_t kTopk = 16;
  static constexpr std::int64_t kChannelOfK = 0, kChannelOfV = 128, kChannelOfIndexK = 256;

  /// Repeats `tile` [kTile, kDim] over all keys at channel `first` of their rows.
  static void repeat(const Buffer& tile, std::int64_t first, DeviceMemory& fused) {
    for (std::int64_t key = 0; key < kKeys; key += kTile) put(tile, key, kTile, first, fused);
  }

  static void put(const Buffer& from, std::int64_t key, std::int64_t count, std::int64_t channel, DeviceMemory& fused) {
    constexpr std::size_t kBytes = sizeof(std::uint16_t);
    require_cuda(cudaMemcpy2D(fused.data() + static_cast<std::size_t>(key * kRowChannels + channel) * kBytes,
                              kRowChannels * kBytes, from.bytes().data(), kDim * kBytes, kDim * kBytes,
                              static_cast<std::size_t>(count), cudaMemcpyDefault),
                 "cudaMemcpy2D");
  }

  static openmsa_tensor slice(const DeviceMemory& fused, std::int64_t channel, bool has_heads) {
    openmsa_tensor tensor{};
    tensor.data = fused.data() + static_cast<std::size_t>(channel) * sizeof(std::uint16_t);
    tensor.dtype = OPENMSA_BFLOAT16;
    tensor.rank = has_heads ? 3 : 2;
    const std::int64_t shape[] = {kKeys, has_heads ? 1 : kDim, kDim},
                       strides[] = {kRowChannels, has_heads ? kDim : 1, 1};
    std::copy_n(shape, tensor.rank, tensor.shape);
    std::copy_n(strides, tensor.rank, tensor.strides);
    return tensor;
  }
};

INSTANTIATE_TEST_SUITE_P(Queries, HugeContext, testing::Values(5, 100), testing::PrintToStringParamName());

TEST_P(HugeContext, BehindFourMillionKeys) {
  // The same keys everywhere, but for one outstanding index key and own k, v in every chosen kv_block. What the queries
  // attend to, alone, is a layer of kTopk blocks, which the reference judges.
  LayerShape shape{.dtype = OPENMSA_BFLOAT16,
                   .num_heads_q = 4,
                   .num_heads_kv = 1,
                   .block_size = kBlock,
                   .topk = kTopk,
                   .seqlens_q = {GetParam()},
                   .seqlens_k = {kTopk * kBlock}};
  Layer compact = device_layer(shape);
  for (std::int64_t row = 0; row < GetParam(); ++row) compact.tensors.at("index_q").set({row, 0, 0}, 4);
  std::vector<std::int64_t> chosen;
  for (std::int64_t i = 0; i + 1 < kTopk; ++i) {
    chosen.push_back((kKeys / kBlock - 2) * (i + 1) / (kTopk - 1));
    compact.tensors.at("index_k").set({i * kBlock + 5 + i, 0}, 100);
  }
  chosen.push_back(kKeys / kBlock - 1);

  DeviceCall call = [&] {
    Layer full = compact;  // the tensors of the call before its keys are replaced
    full.config.max_seqlen_k = kKeys;
    return DeviceCall(full, OPENMSA_OP_MSA_ATTENTION);
  }();
  const std::size_t bytes = static_cast<std::size_t>(kKeys * kRowChannels) * sizeof(std::uint16_t);
  if (!has_room(bytes)) GTEST_SKIP() << "needs " << (bytes >> 30) << " GiB of device memory";
  DeviceMemory fused(bytes);
  std::mt19937_64 random(2);
  for (const auto& [name, channel] : {std::pair{"k", kChannelOfK}, {"v", kChannelOfV}, {"index_k", kChannelOfIndexK}}) {
    repeat(random_buffer(OPENMSA_BFLOAT16, {kTile, kDim}, random), channel, fused);
    for (std::int64_t i = 0; i < kTopk; ++i) {
      put(rows(compact.tensors.at(name), i * kBlock, kBlock), chosen[static_cast<std::size_t>(i)] * kBlock, kBlock,
          channel, fused);
    }
  }
  call.tensors().k = slice(fused, kChannelOfK, true);
  call.tensors().v = slice(fused, kChannelOfV, true);
  call.tensors().index_k = slice(fused, kChannelOfIndexK, false);
  call.tensors().cu_seqlens_k = {};  // one sequence of all keys
  call.tensors().cu_seqlens_q = {};
  call.enqueue();
  const TensorMap got = call.results();
  for (std::int64_t row = 0; row < GetParam(); ++row) {
    ASSERT_EQ(selection_row(got.at("topk_indices"), 0, row), chosen) << "query " << row;
  }
  expect_close(compact, got, judged(compact, OPENMSA_OP_DENSE_ATTENTION));
}

class HugeStrides : public OnHopper {};

/// Copies `tensor` to `memory` with `stride` elements between entries of its first dimension.
openmsa_tensor spread(const Buffer& buffer, std::int64_t stride, std::int64_t first, DeviceMemory& memory) {
  openmsa_tensor tensor = buffer.view();
  const std::size_t element = openmsa_dtype_bytes(tensor.dtype);
  const std::size_t entry = buffer.bytes().size() / static_cast<std::size_t>(tensor.shape[0]);
  std::byte* const data = memory.data() + static_cast<std::size_t>(first) * element;
  require_cuda(cudaMemcpy2D(data, static_cast<std::size_t>(stride) * element, tensor.data, entry, entry,
                            static_cast<std::size_t>(tensor.shape[0]), cudaMemcpyDefault),
               "cudaMemcpy2D");
  tensor.data = data;
  tensor.strides[0] = stride;
  return tensor;
}

TEST_F(HugeStrides, PagesPast32BitsAreFound) {
  // One buffer holds a page of each cache per 2^30 elements; later pages lie past 2^31.
  constexpr std::int64_t kStride = std::int64_t{1} << 30, kPart = 1 << 20;
  const Layer layer = device_layer(
      {.dtype = OPENMSA_BFLOAT16, .block_size = 64, .page_size = 64, .seqlens_q = {3}, .seqlens_k = {190}});
  const TensorMap expected = run(layer, OPENMSA_OP_MSA_ATTENTION);
  const std::int64_t num_pages = layer.tensors.at("k_cache").shape()[0];
  const std::size_t bytes = static_cast<std::size_t>(kStride * num_pages) * sizeof(std::uint16_t);
  if (!has_room(bytes)) GTEST_SKIP() << "needs " << (bytes >> 30) << " GiB of device memory";
  DeviceMemory pages(bytes);
  DeviceCall call(layer, OPENMSA_OP_MSA_ATTENTION);
  Tensors& tensors = call.tensors();
  tensors.k_cache = spread(layer.tensors.at("k_cache"), kStride, 0, pages);
  tensors.v_cache = spread(layer.tensors.at("v_cache"), kStride, kPart, pages);
  tensors.index_k_cache = spread(layer.tensors.at("index_k_cache"), kStride, 2 * kPart, pages);
  call.enqueue();
  expect_same_bits(call.results(), expected);
}

TEST_F(HugeStrides, TokensAreAppendedPast32Bits) {
  constexpr std::int64_t kStride = std::int64_t{1} << 30, kPart = 1 << 20;
  const Layer layer = with_new_keys(
      device_layer(
          {.dtype = OPENMSA_BFLOAT16, .block_size = 64, .page_size = 64, .seqlens_q = {129}, .seqlens_k = {129}}),
      1);
  const std::pair<const char*, openmsa_tensor Tensors::*> caches[] = {
      {"k_cache", &Tensors::k_cache}, {"v_cache", &Tensors::v_cache}, {"index_k_cache", &Tensors::index_k_cache}};
  TensorMap before;
  for (const auto& [name, member] : caches) before[name] = layer.tensors.at(name);
  const TensorMap expected = judged_append(layer, before);
  const auto num_pages = static_cast<std::size_t>(before.at("k_cache").shape()[0]);
  const std::size_t stride_bytes = kStride * sizeof(std::uint16_t), bytes = stride_bytes * num_pages;
  if (!has_room(bytes)) GTEST_SKIP() << "needs " << (bytes >> 30) << " GiB of device memory";
  DeviceMemory pages(bytes);
  DeviceCall call(layer, OPENMSA_OP_APPEND_KV, before);
  Tensors& tensors = call.tensors();
  const Tensors packed = tensors;
  for (std::int64_t i = 0; i < 3; ++i) {
    tensors.*caches[i].second = spread(before.at(caches[i].first), kStride, i * kPart, pages);
  }
  call.enqueue();
  for (const auto& [name, member] : caches) {
    const std::size_t page = before.at(name).bytes().size() / num_pages;
    require_cuda(cudaMemcpy2D((packed.*member).data, page, (tensors.*member).data, stride_bytes, page, num_pages,
                              cudaMemcpyDefault),
                 "cudaMemcpy2D");
  }
  expect_same_bits(call.results(), expected);
}

TEST_F(HugeStrides, RowsPast32BitsAreFound) {
  constexpr std::int64_t kStride = (std::int64_t{1} << 30) + 64, kPart = 1 << 20;
  const Layer layer = device_layer({.dtype = OPENMSA_BFLOAT16, .block_size = 64, .seqlens_q = {3}, .seqlens_k = {190}});
  const TensorMap expected = run(layer, OPENMSA_OP_MSA_ATTENTION);
  const std::size_t bytes = static_cast<std::size_t>(kStride) * 3 * sizeof(float);
  if (!has_room(bytes)) GTEST_SKIP() << "needs " << (bytes >> 30) << " GiB of device memory";
  DeviceMemory memory(bytes);
  DeviceCall call(layer, OPENMSA_OP_MSA_ATTENTION);
  Tensors& tensors = call.tensors();
  const openmsa_tensor o = tensors.o;
  tensors.q = spread(layer.tensors.at("q"), kStride, 0, memory);
  tensors.index_q = spread(layer.tensors.at("index_q"), kStride, kPart, memory);
  tensors.o = spread(expected.at("o"), kStride, 2 * kPart, memory);
  const std::size_t row = expected.at("o").bytes().size() / 3;
  require_cuda(cudaMemset2D(tensors.o.data, kStride * sizeof(std::uint16_t), 0xff, row, 3), "cudaMemset2D");
  call.enqueue();
  require_cuda(cudaMemcpy2D(o.data, row, tensors.o.data, kStride * sizeof(std::uint16_t), row, 3, cudaMemcpyDefault),
               "cudaMemcpy2D");
  expect_same_bits(call.results(), expected);
}

TEST_F(HugeStrides, RowsOfGradientsPast32BitsAreFound) {
  constexpr std::int64_t kStride = (std::int64_t{1} << 30) + 64, kPart = 1 << 20, kRowBytes = kStride * 2;
  Layer layer = device_layer({.dtype = OPENMSA_BFLOAT16, .block_size = 64, .seqlens_q = {3}, .seqlens_k = {190}});
  layer.add(run(layer, OPENMSA_OP_MSA_ATTENTION));
  const TensorMap expected = run(layer, OPENMSA_OP_SPARSE_ATTENTION_BACKWARD);
  const std::size_t bytes = static_cast<std::size_t>(kRowBytes) * 3;
  if (!has_room(bytes)) GTEST_SKIP() << "needs " << (bytes >> 30) << " GiB of device memory";
  DeviceMemory memory(bytes);
  DeviceCall call(layer, OPENMSA_OP_SPARSE_ATTENTION_BACKWARD);
  Tensors& tensors = call.tensors();
  const openmsa_tensor d_q = tensors.d_q;
  tensors.q = spread(layer.tensors.at("q"), kStride, 0, memory);
  tensors.o = spread(layer.tensors.at("o"), kStride, kPart, memory);
  tensors.d_o = spread(layer.tensors.at("d_o"), kStride, 2 * kPart, memory);
  tensors.d_q = spread(expected.at("d_q"), kStride, 3 * kPart, memory);
  const std::size_t row = expected.at("d_q").bytes().size() / 3;
  require_cuda(cudaMemset2D(tensors.d_q.data, kRowBytes, 0xff, row, 3), "cudaMemset2D");
  call.enqueue();
  require_cuda(cudaMemcpy2D(d_q.data, row, tensors.d_q.data, kRowBytes, row, 3, cudaMemcpyDefault), "cudaMemcpy2D");
  expect_same_bits(call.results(), expected);
}

}  // namespace
}  // namespace openmsa::test
