// Checkpoints as others write them: shards with an index, published names, bf16. Each is the same model as the one that
// save_model writes, so that its logits must be the same.
#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "io/error.h"
#include "io/json_file.h"
#include "lm/checkpoint/checkpoint.h"
#include "lm/checkpoint/checkpoint_names.h"
#include "lm/model/decoder.h"
#include "lm/support.h"
#include "support/temporary_directory.h"

namespace openmsa::test {
namespace {

using nlohmann::json;

std::vector<io::BFloat16> to_bf16(std::span<const float> values) {
  std::vector<io::BFloat16> result;
  for (const float value : values) result.push_back(io::to_bfloat16(value));
  return result;
}

std::vector<float> logits_of(const lm::ModelConfig& config, const lm::Weights& weights) {
  const auto tokens = random_tokens(60, config.vocab_size, 2);
  lm::PackedAttention attention(config, {1, 60, 60}, 1);
  lm::Decoder decoder(config, weights.layout(), lm::Decoder::Keep::kNothing);
  const auto logits = decoder.forward(weights, attention, lm::Phase::kSparse, tokens, lm::packed_sequences({60}));
  return {logits.begin(), logits.end()};
}

/// A folder with the weights under the names of stored_names()[form], every other tensor in a second shard.
class Published : public testing::Test {
 protected:
  void write(std::size_t form, io::ElementType type) {
    io::SafetensorsWriter shards[2];
    json weight_map;
    for (const lm::Parameter& parameter : weights_.layout().parameters()) {
      const auto forms = lm::stored_names(parameter);
      add(parameter, forms[std::min(form, forms.size() - 1)], type, shards, weight_map);
    }
    for (int shard = 0; shard < 2; ++shard) shards[shard].write(folder_ / file_name(shard));
    io::write_json(folder_ / "model.safetensors.index.json", {{"weight_map", weight_map}});
    io::write_json(folder_ / "config.json", {{"model_type", "minimax_m3_vl"},
                                             {"vision_config", {{"hidden_size", 32}}},
                                             {"text_config", lm::config_to_json(config_)}});
  }

  static std::string file_name(std::size_t shard) { return "model-0000" + std::to_string(shard) + ".safetensors"; }

  void add(const lm::Parameter& parameter, const lm::StoredNames& names, io::ElementType type,
           io::SafetensorsWriter* shards, json& weight_map) {
    const auto values = weights_.of(parameter);
    const std::size_t size = values.size() / names.size();
    auto shape = parameter.shape;
    if (names.size() > 1) shape = {static_cast<std::int64_t>(size) / shape.back(), shape.back()};
    for (std::size_t i = 0; i < names.size(); ++i) {
      const std::size_t shard = weight_map.size() % 2;
      const void* data = values.data() + i * size;
      if (type == io::ElementType::kBF16) {
        data = bf16_.emplace_back(to_bf16(std::span(values).subspan(i * size, size))).data();
      }
      shards[shard].add(names[i], type, shape, data);
      weight_map[names[i]] = file_name(shard);
    }
  }

  void expect_refusal(const std::string& message) const {
    try {
      lm::load_model(folder_.path());
      FAIL() << "accepted";
    } catch (const io::InputError& error) {
      EXPECT_THAT(error.what(), testing::HasSubstr(message));
    }
  }

  const lm::ModelConfig config_ = tiny_moe_config(3);
  const lm::Parameters weights_ = random_weights(config_, 1);
  std::deque<std::vector<io::BFloat16>> bf16_;
  TemporaryDirectory folder_;
};

TEST_F(Published, EveryFormIsTheSameModel) {
  const auto expected = logits_of(config_, weights_);
  const std::size_t forms = lm::stored_names(weights_.layout().at("model.layers.1.mlp.experts.gate_up_proj")).size();
  ASSERT_GT(forms, 6u);
  for (std::size_t form = 0; form < forms; ++form) {
    write(form, io::ElementType::kF32);
    const lm::Model model = lm::load_model(folder_.path());
    const auto logits = logits_of(model.config, model.weights);
    for (std::size_t i = 0; i < logits.size(); ++i) ASSERT_NEAR(logits[i], expected[i], 1e-4) << "form " << form;
  }
}

TEST_F(Published, NamesAreThoseOfMiniMaxM3) {
  const auto has = [&](const char* parameter, const lm::StoredNames& names) {
    return testing::Value(lm::stored_names(weights_.layout().at(parameter)), testing::Contains(names));
  };
  const std::string layer = "language_model.model.layers.1.";
  EXPECT_TRUE(has("model.layers.1.self_attn.indexer.k_norm.weight", {layer + "self_attn.index_k_norm.weight"}));
  EXPECT_TRUE(
      has("model.layers.1.mlp.gate.e_score_correction_bias", {layer + "block_sparse_moe.e_score_correction_bias"}));
  const std::string moe = layer + "block_sparse_moe.";
  EXPECT_TRUE(has("model.layers.1.mlp.experts.down_proj",
                  {moe + "experts.0.w2.weight", moe + "experts.1.w2.weight", moe + "experts.2.w2.weight"}));
  EXPECT_TRUE(has("model.layers.1.mlp.experts.gate_up_proj",
                  {moe + "experts.0.w1.weight", moe + "experts.0.w3.weight", moe + "experts.1.w1.weight",
                   moe + "experts.1.w3.weight", moe + "experts.2.w1.weight", moe + "experts.2.w3.weight"}));
  EXPECT_TRUE(has("model.layers.1.mlp.shared_experts.gate_up_proj.weight",
                  {moe + "shared_experts.gate_proj.weight", moe + "shared_experts.up_proj.weight"}));
  EXPECT_TRUE(has("lm_head.weight", {"language_model.lm_head.weight"}));
}

TEST_F(Published, Bf16MatricesStayWhereTheyAreMapped) {
  write(0, io::ElementType::kBF16);
  const lm::Model model = lm::load_model(folder_.path());
  EXPECT_EQ(model.weights.precision(), lm::Precision::kBf16);
  for (const lm::Parameter& parameter : model.weights.layout().parameters()) {
    const auto& blocks = model.weights.matrix(model.weights.layout().index_of(parameter.name)).blocks;
    EXPECT_EQ(blocks.front().bf16 != nullptr, parameter.is_matrix()) << parameter.name;
  }
}

/// Logits are bf16 numbers, and most rows are those of the rounded weights to bf16's accuracy; in the others a near-tie
/// of experts or blocks tips.
TEST_F(Published, Bf16ModelsRoundTheirActivations) {
  write(0, io::ElementType::kBF16);
  const lm::Model model = lm::load_model(folder_.path());
  lm::Parameters rounded = weights_;
  for (float& value : rounded.values()) value = lm::bf16_rounded(value);
  const auto exact = logits_of(config_, rounded);
  const auto logits = logits_of(model.config, model.weights);
  const auto row_size = static_cast<std::size_t>(config_.vocab_size);
  std::vector<double> errors;
  for (std::size_t row = 0; row < logits.size(); row += row_size) {
    double error = 0.0, norm = 0.0;
    for (std::size_t i = row; i < row + row_size; ++i) {
      EXPECT_EQ(logits[i], lm::bf16_rounded(logits[i]));
      error += std::pow(logits[i] - exact[i], 2.0);
      norm += std::pow(exact[i], 2.0);
    }
    errors.push_back(std::sqrt(error / norm));
  }
  std::ranges::sort(errors);
  EXPECT_LT(errors[errors.size() / 2], 3e-2);
  EXPECT_GT(errors[errors.size() / 2], 1e-4);
}

TEST_F(Published, RefusesShardsOutsideTheFolder) {
  write(0, io::ElementType::kF32);
  json index = io::read_json(folder_ / "model.safetensors.index.json");
  for (const char* name : {"../model-00000.safetensors", "/etc/passwd", "..", "a/b.safetensors", ""}) {
    index["weight_map"]["lm_head.weight"] = name;
    io::write_json(folder_ / "model.safetensors.index.json", index);
    expect_refusal("expected the name of a file");
  }
}

TEST_F(Published, RefusesIndexesThatDoNotFit) {
  write(0, io::ElementType::kF32);
  const json good = io::read_json(folder_ / "model.safetensors.index.json");
  const auto refused = [&](const json& index, const std::string& message) {
    io::write_json(folder_ / "model.safetensors.index.json", index);
    expect_refusal(message);
  };
  refused(json::array(), "weight_map");
  refused({{"weight_map", json::object()}}, "no tensors");
  refused({{"weight_map", {{"lm_head.weight", 7}}}}, "expected a string");
  json other = good;
  other["weight_map"].erase("lm_head.weight");
  refused(other, "lacks the tensor lm_head.weight");
  const std::string file = good["weight_map"]["lm_head.weight"];
  other["weight_map"]["lm_head.weight"] = file == file_name(0) ? file_name(1) : file_name(0);
  refused(other, "no tensor 'lm_head.weight'");
  other["weight_map"]["lm_head.weight"] = "absent.safetensors";
  refused(other, "absent.safetensors");
}

TEST_F(Published, RefusesWeightsItCannotRead) {
  write(0, io::ElementType::kF32);
  std::filesystem::resize_file(folder_ / file_name(1), std::filesystem::file_size(folder_ / file_name(1)) - 1);
  expect_refusal(file_name(1));
}

/// The file is sparse: it claims and has the bytes, and takes no room.
TEST_F(Published, RefusesWhatDoesNotFitMemoryWithTheFigures) {
  lm::ModelConfig large = config_;
  large.vocab_size = 1 << 24;
  large.hidden_size = 1 << 14;
  const lm::ParameterLayout layout(large);
  json header;
  std::uint64_t end = 0;
  for (const lm::Parameter& parameter : layout.parameters()) {
    const std::uint64_t begin = end;
    end += parameter.size * 2;
    header[parameter.name] = {{"dtype", "BF16"}, {"shape", parameter.shape}, {"data_offsets", {begin, end}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const std::uint64_t length = text.size();
  std::ofstream file(folder_ / "model.safetensors", std::ios::binary);
  file.write(reinterpret_cast<const char*>(&length), 8);
  file << text;
  file.close();
  std::error_code error;
  std::filesystem::resize_file(folder_ / "model.safetensors", 8 + length + end, error);
  if (error) GTEST_SKIP() << "no sparse file of " << end << " bytes here: " << error.message();
  io::write_json(folder_ / "config.json", lm::config_to_json(large));
  expect_refusal("the model needs 1024.0 GiB of memory, ");
}

}  // namespace
}  // namespace openmsa::test
