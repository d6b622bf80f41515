// What must not change a single bit on any backend: the run, and where pages lie.
#include <gtest/gtest.h>

#include <tuple>

#include "support/compare.h"
#include "support/selections.h"

namespace openmsa::test {
namespace {

using OperationOf = std::tuple<Backend, openmsa_op>;

std::vector<OperationOf> operations() {
  constexpr openmsa_op kForward[] = {OPENMSA_OP_BLOCK_SCORES, OPENMSA_OP_TOPK, OPENMSA_OP_SELECT_BLOCKS,
                                     OPENMSA_OP_SPARSE_ATTENTION, OPENMSA_OP_MSA_ATTENTION};
  constexpr openmsa_op kBackward[] = {OPENMSA_OP_SPARSE_ATTENTION_BACKWARD, OPENMSA_OP_DENSE_ATTENTION_BACKWARD,
                                      OPENMSA_OP_KL_LOSS, OPENMSA_OP_MSA_ATTENTION_BACKWARD};
  constexpr openmsa_op kOthers[] = {OPENMSA_OP_DENSE_ATTENTION, OPENMSA_OP_BLOCK_RECALL};
  std::vector<OperationOf> result;
  for (const Backend& backend : judged_backends()) {
    for (const openmsa_op op : kForward) result.emplace_back(backend, op);
    for (const openmsa_op op : kBackward) result.emplace_back(backend, op);
    if (backend.id != OPENMSA_BACKEND_CPU) continue;
    for (const openmsa_op op : kOthers) result.emplace_back(backend, op);
  }
  return result;
}

class Exactness : public OnAnyBackend, public testing::WithParamInterface<OperationOf> {
 protected:
  /// Large enough that every stage has work for many threads or CTAs, whose order differs from run to run.
  static Layer busy_layer() {
    const auto& [backend, op] = GetParam();
    const bool is_cpu = backend.id == OPENMSA_BACKEND_CPU;
    Layer layer = make_layer({.dtype = backend.dtype,
                              .num_heads_q = is_cpu ? 8 : 16,
                              .head_dim = is_cpu ? 64 : 128,
                              .block_size = backend.block_size,
                              .topk = is_cpu ? 3 : 8,
                              .seqlens_q = is_cpu ? std::vector<std::int64_t>{150, 1, 75, 40}
                                                  : std::vector<std::int64_t>{600, 1, 5, 300},
                              .seqlens_k = is_cpu ? std::vector<std::int64_t>{150, 333, 75, 200}
                                                  : std::vector<std::int64_t>{4000, 900, 1300, 300}})
                      .on(backend.id);
    layer.config.num_threads = 4;
    layer.add(judged(layer, OPENMSA_OP_BLOCK_SCORES, OPENMSA_BACKEND_CPU));
    layer.add({{"topk_indices", random_selection(layer, 9)}});
    const TensorMap forward = run(layer, OPENMSA_OP_SPARSE_ATTENTION);
    return layer.add(forward);
  }
};
INSTANTIATE_TEST_SUITE_P(Operations, Exactness, testing::ValuesIn(operations()), [](const auto& info) {
  return backend_name(std::get<Backend>(info.param)) + "_" + name_of(std::get<openmsa_op>(info.param));
});

/// Pitfall 19: races in sums of gradients.
TEST_P(Exactness, TwentyRunsAreEqual) {
  const Layer layer = busy_layer();
  const openmsa_op op = std::get<openmsa_op>(GetParam());
  const TensorMap first = run(layer, op);
  for (int repeat = 1; repeat < 20; ++repeat) {
    expect_same_bits(run(layer, op), first);
    if (HasFailure()) return;
  }
}

class ExactnessOfPages : public OnBackend {
 protected:
  void expect_same(LayerShape shape, const std::vector<std::int32_t>& page_sizes) const {
    shape.block_size = block();
    const TensorMap contiguous = run(make_layer(shape).on(GetParam().id), OPENMSA_OP_MSA_ATTENTION);
    for (const std::int32_t page_size : page_sizes) {
      shape.page_size = page_size;
      for (const std::uint64_t page_seed : {1, 2}) {
        SCOPED_TRACE(testing::Message() << "page_size " << page_size << ", order " << page_seed);
        expect_same_bits(run(make_layer(shape, 1, page_seed).on(GetParam().id), OPENMSA_OP_MSA_ATTENTION), contiguous);
      }
    }
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, ExactnessOfPages, testing::ValuesIn(judged_backends()), backend_test_name);

TEST_P(ExactnessOfPages, OrderAndSizeDoNotMatter) {
  std::vector<std::int32_t> page_sizes;
  for (std::int32_t page_size = block(); page_size >= 16; page_size /= 2) page_sizes.push_back(page_size);
  std::vector<openmsa_dtype> dtypes = {OPENMSA_BFLOAT16, OPENMSA_FLOAT16};
  if (GetParam().id == OPENMSA_BACKEND_CPU) {
    page_sizes.insert(page_sizes.end(), {8, 1});
    dtypes = {OPENMSA_FLOAT32, OPENMSA_BFLOAT16};
  }
  for (const openmsa_dtype dtype : dtypes) {
    SCOPED_TRACE(testing::Message() << "dtype " << dtype);
    expect_same({.dtype = dtype, .num_heads_q = 8, .seqlens_q = {150, 1, 20}, .seqlens_k = {150, 610, 333}},
                page_sizes);
    expect_same(
        {.dtype = dtype, .num_heads_q = 8, .head_dim = 128, .seqlens_q = {4, 1, 16}, .seqlens_k = {150, 1610, 733}},
        page_sizes);
  }
}

}  // namespace
}  // namespace openmsa::test
