// msa attend gives what the library gives, bit by bit.
#include <gmock/gmock.h>

#include "io/json_file.h"
#include "msa/msa.h"

namespace openmsa::test {
namespace {

using testing::UnorderedElementsAre;

const std::vector<std::string> kOptions = {"--block-size", "32", "--topk", "4"};

std::vector<std::string> with(std::vector<std::string> more) {
  more.insert(more.begin(), kOptions.begin(), kOptions.end());
  return more;
}

std::vector<std::string> and_also(std::vector<std::string> names, const std::vector<std::string>& more) {
  names.insert(names.end(), more.begin(), more.end());
  return names;
}

void expect_all_same(const io::SafetensorsFile& file, const TensorMap& expected) {
  for (const auto& [name, buffer] : expected) expect_same(file, name, buffer);
}

LayerShape ragged() {
  LayerShape shape;
  shape.seqlens_q = {70, 1, 0, 5};
  shape.seqlens_k = {70, 200, 33, 300};
  return shape;
}

/// Dense attention has no --block-size; the library's default decides how its sums are grouped.
Layer dense(Layer layer) {
  layer.config.block_size = openmsa::config().block_size;
  return layer;
}

using Attend = MsaTest;

TEST_F(Attend, WholeLayerInEveryType) {
  for (const openmsa_dtype dtype : {OPENMSA_FLOAT32, OPENMSA_BFLOAT16, OPENMSA_FLOAT16}) {
    LayerShape shape;
    shape.dtype = dtype;
    shape.seqlens_q = shape.seqlens_k = {200};
    const Layer layer = make_layer(shape);
    write(layer, {"q", "k", "v", "index_q", "index_k"});
    const io::SafetensorsFile file = attend(kOptions);
    EXPECT_EQ(file.tensors().size(), 3u);
    expect_all_same(file, run(layer, OPENMSA_OP_MSA_ATTENTION));
  }
}

TEST_F(Attend, RaggedBatch) {
  const Layer layer = make_layer(ragged());
  write(layer, kContiguous);
  expect_all_same(attend(kOptions), run(layer, OPENMSA_OP_MSA_ATTENTION));
}

TEST_F(Attend, FewerQueriesThanKeysAreAChunkAtTheEnd) {
  LayerShape shape;
  shape.seqlens_q = {17};
  shape.seqlens_k = {150};
  const Layer layer = make_layer(shape);
  write(layer, {"q", "k", "v", "index_q", "index_k"});
  expect_all_same(attend(kOptions), run(layer, OPENMSA_OP_MSA_ATTENTION));
}

TEST_F(Attend, PagedEqualsContiguous) {
  LayerShape shape = ragged();
  const Layer contiguous = make_layer(shape);
  shape.page_size = 16;
  const Layer paged = make_layer(shape);
  write(paged, kPaged);
  const io::SafetensorsFile file = attend(kOptions);
  expect_all_same(file, run(paged, OPENMSA_OP_MSA_ATTENTION));
  expect_all_same(file, run(contiguous, OPENMSA_OP_MSA_ATTENTION));
  expect_all_same(attend({"--dense"}), run(dense(contiguous), OPENMSA_OP_DENSE_ATTENTION));
}

TEST_F(Attend, GivenIndicesAreNotSelectedAgain) {
  Layer layer = make_layer(ragged());
  layer.add(run(layer, OPENMSA_OP_SELECT_BLOCKS));
  layer.tensors.at("topk_indices").set({0, 10, 0}, 0);
  layer.tensors.at("topk_indices").set({0, 10, 1}, -1);
  write(layer, {"cu_seqlens_q", "cu_seqlens_k", "q", "k", "v", "topk_indices"});
  const io::SafetensorsFile file = attend({"--block-size", "32"});
  expect_all_same(file, run(layer, OPENMSA_OP_SPARSE_ATTENTION));
  expect_same(file, "topk_indices", layer.tensors.at("topk_indices"));
}

TEST_F(Attend, DenseNeedsNoIndexBranch) {
  const Layer layer = dense(make_layer(ragged()));
  write(layer, {"cu_seqlens_q", "cu_seqlens_k", "q", "k", "v"});
  const io::SafetensorsFile file = attend({"--dense"});
  EXPECT_EQ(file.tensors().size(), 2u);
  expect_all_same(file, run(layer, OPENMSA_OP_DENSE_ATTENTION));
}

TEST_F(Attend, ForcedBlocksAndScale) {
  LayerShape shape;
  shape.num_init_blocks = 1;
  shape.num_local_blocks = 2;
  shape.seqlens_q = shape.seqlens_k = {300};
  Layer layer = make_layer(shape);
  layer.config.softmax_scale = 0.3;
  write(layer, kContiguous);
  expect_all_same(attend(with({"--num-init-blocks", "1", "--num-local-blocks", "2", "--softmax-scale", "0.3"})),
                  run(layer, OPENMSA_OP_MSA_ATTENTION));
}

TEST_F(Attend, BackwardOverTheSelection) {
  Layer layer = make_layer(ragged());
  write(layer, and_also(kContiguous, {"d_o"}));
  const io::SafetensorsFile file = attend(with({"--backward"}));
  const TensorMap forward = run(layer, OPENMSA_OP_MSA_ATTENTION);
  layer.add(forward);
  expect_all_same(file, forward);
  expect_all_same(file, run(layer, OPENMSA_OP_SPARSE_ATTENTION_BACKWARD));
  expect_all_same(file, run(layer, OPENMSA_OP_KL_LOSS));
}

TEST_F(Attend, BackwardOverTheWholeHistory) {
  Layer layer = dense(make_layer(ragged()));
  write(layer, and_also(kContiguous, {"d_o"}));
  const io::SafetensorsFile file = attend({"--dense", "--backward"});
  layer.add(run(layer, OPENMSA_OP_DENSE_ATTENTION));
  expect_all_same(file, run(layer, OPENMSA_OP_DENSE_ATTENTION_BACKWARD));
  expect_all_same(file, run(layer, OPENMSA_OP_KL_LOSS));
}

TEST_F(Attend, BackwardWithoutIndexBranchHasNoKlLoss) {
  const Layer layer = make_layer(ragged());
  write(layer, {"cu_seqlens_q", "cu_seqlens_k", "q", "k", "v", "d_o"});
  std::vector<std::string> names;
  const io::SafetensorsFile file = attend({"--dense", "--backward"});
  for (const auto& [name, tensor] : file.tensors()) names.push_back(name);
  EXPECT_THAT(names, UnorderedElementsAre("o", "lse", "d_q", "d_k", "d_v"));
}

TEST_F(Attend, ReferenceBackend) {
  const Layer layer = make_layer(ragged()).on(OPENMSA_BACKEND_REFERENCE);
  write(layer, kContiguous);
  const io::SafetensorsFile file = attend(with({"--backend", "reference"}));
  expect_same(file, "o", run(layer, OPENMSA_OP_MSA_ATTENTION).at("o"));
}

TEST_F(Attend, ThreadsDoNotChangeBits) {
  write(make_layer(ragged()), and_also(kContiguous, {"d_o"}));
  attend(with({"--backward", "--threads", "1"}));
  const std::string one = io::read_text(directory_ / "out");
  attend(with({"--backward", "--threads", "3"}));
  EXPECT_EQ(io::read_text(directory_ / "out"), one);
}

TEST_F(Attend, OtherTensorsInTheFileAreLeftAlone) {
  Layer layer = make_layer(ragged());
  layer.add(run(layer, OPENMSA_OP_DENSE_ATTENTION));  // an o and an lse that are wrong for the sparse layer
  write(layer, and_also(kContiguous, {"o", "lse", "d_o"}));
  expect_all_same(attend(kOptions), run(layer, OPENMSA_OP_MSA_ATTENTION));
}

TEST_F(Attend, Figures) {
  write(make_layer(ragged()), and_also(kContiguous, {"d_o"}));
  attend(with({"--backward", "--threads", "2", "--json", directory_ / "figures.json"}));
  const nlohmann::json figures = io::read_json(directory_ / "figures.json");
  EXPECT_EQ(figures["backend"], "cpu");
  EXPECT_EQ(figures["threads"], 2);
  EXPECT_EQ(figures["topk"], 4);
  EXPECT_EQ(figures["outputs"]["o"]["shape"], (std::vector<int>{76, 4, 64}));
  for (const char* stage : {"select_blocks", "sparse_attention", "sparse_attention_backward", "kl_loss"}) {
    EXPECT_GT(figures["milliseconds"][stage].get<double>(), 0) << stage;
  }
}

}  // namespace
}  // namespace openmsa::test
