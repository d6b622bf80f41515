#include "cuda/support/replays.h"

#include "cuda/support/device_call.h"
#include "support/compare.h"

namespace openmsa::test {

void expect_replays_follow(std::span<const Layer> steps, openmsa_op op) {
  DeviceCall call(steps.front(), op);
  const Graph graph([&](cudaStream_t stream) { call.enqueue(stream); });
  const Stream stream;
  for (std::size_t i = 0; i < steps.size(); ++i) {
    SCOPED_TRACE(testing::Message() << name_of(op) << ", step " << i);
    call.update(steps[i]);
    call.poison();
    graph.replay(stream);
    expect_same_bits(call.results(), run(steps[i], op));
  }
}

void expect_equal_replays(const Layer& layer, openmsa_op op) {
  const DeviceCall call(layer, op);
  const Graph graph([&](cudaStream_t stream) { call.enqueue(stream); });
  const Stream stream;
  graph.replay(stream);
  const TensorMap first = call.results();
  for (int repeat = 1; repeat < 20; ++repeat) {
    graph.replay(stream);
    expect_same_bits(call.results(), first);
    if (testing::Test::HasFailure()) return;
  }
}

}  // namespace openmsa::test
