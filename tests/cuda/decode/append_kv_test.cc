// New tokens into caches in device memory: what cannot be checked there, and halves of one buffer.
#include "support/append_kv.h"

#include <utility>

#include "cuda/support/device_call.h"
#include "cuda/support/fused_cache.h"
#include "cuda/support/hopper.h"

namespace openmsa::test {
namespace {

class DeviceAppendKv : public OnHopper {
 protected:
  static Layer new_tokens(std::vector<std::int64_t> seqlens_q, std::vector<std::int64_t> seqlens_k) {
    return with_new_keys(device_layer({.dtype = OPENMSA_BFLOAT16,
                                       .block_size = 128,
                                       .page_size = 16,
                                       .seqlens_q = std::move(seqlens_q),
                                       .seqlens_k = std::move(seqlens_k),
                                       .padding_q = 3}),
                         3);
  }
};

TEST_F(DeviceAppendKv, KeysAndValuesAsHalvesOfOneBuffer) {
  const Layer layer = new_tokens({1, 16, 0, 130, 2, 0, 1, 70}, {1, 129, 40, 130, 0, 0, 256, 333});
  const TensorMap before = stored(layer);
  const TensorMap expected = judged_append(layer, before);
  for (const bool head_major : {false, true}) {
    DeviceCall call(layer, OPENMSA_OP_APPEND_KV, before);
    const FusedCache fused(before, head_major);
    fused.bind(call.tensors());
    call.enqueue();
    const TensorMap apart = call.results();
    expect_same_bits(fused.separate(), {{"k_cache", expected.at("k_cache")}, {"v_cache", expected.at("v_cache")}});
    EXPECT_TRUE(apart.at("index_k_cache").same_bits(expected.at("index_k_cache")));
    EXPECT_TRUE(apart.at("k_cache").same_bits(before.at("k_cache"))) << "written where the call does not point";
  }
}

/// Values in device memory cannot be checked: with more new tokens than keys, those in front of position 0 are not
/// stored. For the CPU they are the rows of padding in between.
TEST_F(DeviceAppendKv, NegativePositionsAreNotWritten) {
  const Layer layer = new_tokens({5, 1, 16}, {3, 200, 4});
  const Buffer& table = layer.tensors.at("block_table");
  Layer padded = layer;
  padded.config.max_batch = 5;
  padded.tensors["cu_seqlens_q"] = int_buffer({0, 2, 5, 6, 18, 22});
  padded.tensors["seqlens_k"] = int_buffer({0, 3, 200, 0, 4});
  Buffer& rows_of_five = padded.tensors["block_table"] = Buffer(OPENMSA_INT32, {5, table.shape()[1]});
  rows_of_five.fill(-1);
  const std::int64_t row_of[] = {1, 2, 4};
  for (std::int64_t b = 0; b < 3; ++b) {
    for (std::int64_t p = 0; p < table.shape()[1]; ++p) rows_of_five.set({row_of[b], p}, table.at({b, p}));
  }
  expect_same_bits(appended(layer, stored(layer)), judged_append(padded, stored(layer)));
}

}  // namespace
}  // namespace openmsa::test
