// One layer of sparse attention on random tensors, C++ API.
#include <iostream>
#include <openmsa/openmsa.hpp>
#include <random>
#include <vector>

namespace {

std::vector<float> random_tensor(std::int64_t size, std::mt19937& generator) {
  std::normal_distribution<float> normal;
  std::vector<float> values(size);
  for (float& value : values) value = normal(generator);
  return values;
}

}  // namespace

int main() try {
  constexpr int kTokens = 1000, kHeadsQ = 8, kHeadsKv = 2, kDim = 64;

  openmsa::Config config = openmsa::config();  // fp32 on the CPU backend
  config.num_heads_q = kHeadsQ;
  config.num_heads_kv = kHeadsKv;
  config.head_dim = kDim;
  config.index_dim = kDim;
  config.block_size = 64;
  config.topk = 4;
  config.max_total_q = kTokens;
  config.max_seqlen_k = kTokens;
  const openmsa::Plan plan(config);

  std::mt19937 generator(1);
  const auto q = random_tensor(kTokens * kHeadsQ * kDim, generator);
  const auto k = random_tensor(kTokens * kHeadsKv * kDim, generator);
  const auto v = random_tensor(kTokens * kHeadsKv * kDim, generator);
  const auto index_q = random_tensor(kTokens * kHeadsKv * kDim, generator);
  const auto index_k = random_tensor(kTokens * kDim, generator);
  std::vector<float> o(q.size());
  std::vector<std::int32_t> topk_indices(kHeadsKv * kTokens * config.topk);

  openmsa::Tensors tensors = openmsa::tensors();
  tensors.q = openmsa::view(q.data(), {kTokens, kHeadsQ, kDim});
  tensors.k = openmsa::view(k.data(), {kTokens, kHeadsKv, kDim});
  tensors.v = openmsa::view(v.data(), {kTokens, kHeadsKv, kDim});
  tensors.index_q = openmsa::view(index_q.data(), {kTokens, kHeadsKv, kDim});
  tensors.index_k = openmsa::view(index_k.data(), {kTokens, kDim});
  tensors.o = openmsa::view(o.data(), {kTokens, kHeadsQ, kDim});
  tensors.topk_indices = openmsa::view(topk_indices.data(), {kHeadsKv, kTokens, config.topk});

  openmsa::Workspace workspace;
  plan.run(OPENMSA_OP_MSA_ATTENTION, tensors, workspace);

  std::cout << "the last token reads kv_blocks";
  for (int slot = 0; slot < config.topk; ++slot) {
    std::cout << ' ' << topk_indices[(kTokens - 1) * config.topk + slot];
  }
  std::cout << "\no[last, 0, 0] = " << o[(kTokens - 1) * kHeadsQ * kDim] << '\n';
} catch (const openmsa::Error& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
