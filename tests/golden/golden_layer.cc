#include "golden/golden_layer.h"

#include <algorithm>
#include <string>

#include "support/golden.h"

namespace openmsa::test {
namespace {

Buffer read(const io::SafetensorsFile& file, const std::string& name, openmsa_dtype dtype) {
  const io::StoredTensor& stored = file.at(name);
  const std::vector<float> values = stored.to_float();
  return Buffer(dtype, stored.shape, {values.begin(), values.end()});
}

/// topk [N, num_heads_kv, topk] in score order, as sets.
std::vector<std::int64_t> golden_selection(const io::SafetensorsFile& file, std::int64_t row, std::int64_t r) {
  const io::StoredTensor& stored = file.at("topk");
  const auto* values = reinterpret_cast<const std::int32_t*>(stored.data);
  const std::int64_t topk = stored.shape[2];
  const auto* begin = values + (row * stored.shape[1] + r) * topk;
  std::vector<std::int64_t> result(begin, begin + topk);
  std::erase(result, -1);
  std::sort(result.begin(), result.end());
  return result;
}

}  // namespace

io::SafetensorsFile golden_layer(const std::string& name) {
  return io::SafetensorsFile(golden_file(name + ".safetensors"));
}

Layer read_layer(const io::SafetensorsFile& file) {
  const auto number = [&](const char* key) { return std::stoi(file.metadata().at(key)); };
  Layer layer = make_layer({.dtype = OPENMSA_BFLOAT16,
                            .num_heads_q = number("num_heads_q"),
                            .num_heads_kv = number("num_heads_kv"),
                            .head_dim = number("head_dim"),
                            .index_dim = number("index_dim"),
                            .block_size = number("block_size"),
                            .topk = number("topk"),
                            .seqlens_q = {number("seqlen_q")},
                            .seqlens_k = {number("seqlen_k")}});
  layer.config.softmax_scale = std::stod(file.metadata().at("softmax_scale"));
  for (const char* name : {"q", "k", "v", "index_q", "index_k"}) {
    layer.tensors[name] = read(file, name, OPENMSA_BFLOAT16);
  }
  return layer;
}

void expect_golden(const io::SafetensorsFile& file, const Layer& layer, const TensorMap& results, Tolerance allowed,
                   std::int64_t first) {
  const auto expected = [&](const char* name) {
    return rows(read(file, name, OPENMSA_FLOAT32), first, layer.total_q());
  };
  for (std::int64_t r = 0; r < layer.shape.num_heads_kv; ++r) {
    for (std::int64_t row = 0; row < layer.total_q(); ++row) {
      auto chosen = selection_row(results.at("topk_indices"), r, row);
      std::erase(chosen, -1);
      ASSERT_EQ(chosen, golden_selection(file, first + row, r)) << "head " << r << ", query " << first + row;
    }
  }
  EXPECT_LT(relative_error(results.at("o"), expected("o_f64")), allowed.o);
  EXPECT_LT(absolute_error(results.at("lse"), expected("lse")), allowed.lse);
}

}  // namespace openmsa::test
