#include "support/gradients.h"

#include "judge/errors.h"
#include "judge/tolerance.h"

namespace openmsa::test {

Layer with_forward(Layer layer, openmsa_op forward, openmsa_backend judge) {
  const TensorMap saved = judged(layer, forward, judge);
  layer.tensors["o"] = saved.at("o").as(layer.config.dtype);
  layer.tensors["lse"] = saved.at("lse").as(OPENMSA_FLOAT32);
  return layer;
}

void expect_gradients(const Layer& layer, openmsa_op forward, openmsa_backend judge) {
  const Layer saved = with_forward(layer, forward, judge);
  const TensorMap expected = judged(saved, backward_of(forward), judge);
  for (const auto& [name, gradient] : run(saved, backward_of(forward))) {
    EXPECT_LT(relative_error(gradient, expected.at(name)), tolerance(layer.config).gradient)
        << name << " of " << openmsa_op_name(forward);
  }
}

}  // namespace openmsa::test
