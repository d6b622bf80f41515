#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>

#include "ref/hand.h"
#include "support/finite_differences.h"

namespace openmsa::test {
namespace {

/// A training step's loss: one that is linear in o and lse, and the KL loss whose teacher is that of `fixed`.
double loss_of(const Layer& layer, const Layer& fixed) {
  const TensorMap out = run(layer, OPENMSA_OP_SPARSE_ATTENTION, {"o", "lse"});
  const Buffer &o = out.at("o"), &lse = out.at("lse");
  const Buffer &d_o = layer.tensors.at("d_o"), &d_lse = layer.tensors.at("d_lse");
  double sum = 0;
  for (std::int64_t i = 0; i < o.size(); ++i) sum += o[i] * d_o[i];
  for (std::int64_t i = 0; i < lse.size(); ++i) sum += std::isfinite(lse[i]) ? lse[i] * d_lse[i] : 0;
  Layer index = layer;
  for (const char* name : {"q", "k", "lse"}) index.tensors[name] = fixed.tensors.at(name);
  return sum + run(index, OPENMSA_OP_KL_LOSS, {"kl_loss"}).at("kl_loss")[0];
}

TEST(MsaAttentionBackward, MatchesFiniteDifferencesWithTheTeacherHeld) {
  Layer layer = small_layer();
  std::mt19937_64 random(2);
  layer.tensors["d_lse"] = random_buffer(OPENMSA_FLOAT64, {layer.total_q(), 4}, random);
  layer.tensors["kl_weights"] = random_buffer(OPENMSA_FLOAT64, {layer.total_q()}, random);
  layer.tensors["kl_weights"].set(3, 0);
  layer.add(run(layer, OPENMSA_OP_SELECT_BLOCKS));
  Layer saved = layer;
  const TensorMap gradients =
      run(saved.add(run(layer, OPENMSA_OP_SPARSE_ATTENTION, {"o", "lse"})), OPENMSA_OP_MSA_ATTENTION_BACKWARD);
  for (const char* name : {"q", "k", "v", "index_q", "index_k"}) {
    expect_gradient(layer, name, gradients.at(std::string("d_") + name),
                    [&](const Layer& at) { return loss_of(at, saved); });
  }
}

}  // namespace
}  // namespace openmsa::test
