// Running operations on a layer, on whatever backend its plan names. A test program that has a GPU backend registers it
// as a Device; the bodies of the tests do not know the difference.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "judge/call.h"
#include "judge/layer.h"

namespace openmsa::test {

using namespace judge;

/// A backend, and what of a layer a test leaves to it.
struct Backend {
  openmsa_backend id;
  openmsa_dtype dtype;
  std::int32_t block_size;
};

struct NamedShape {
  std::string name;
  LayerShape shape;
};

/// Gives a copy of the buffer in the backend's memory, with the same strides, that lives as long as the call.
using Place = std::function<void*(const Buffer&)>;
/// Changes the views of a call before it is made.
using Rebind = std::function<void(Tensors&, const Place&)>;

/// A backend with memory of its own.
class Device {
 public:
  virtual ~Device() = default;
  /// Why nothing can run here; "" where it can.
  virtual std::string obstacle() const = 0;
  virtual std::vector<Backend> backends() const = 0;
  /// What it serves of either branch, in every combination that takes another way through its code.
  virtual std::vector<NamedShape> attention_shapes() const = 0;
  virtual std::vector<NamedShape> selection_shapes() const = 0;
  /// Makes the call with inputs and outputs in the device's memory and brings back the outputs.
  virtual void run(const Layer& layer, openmsa_op op, TensorMap& outputs, const Rebind& rebind) const = 0;
};

/// From then on the tests of this program are those of `device` alone. It must live as long as they run.
bool register_device(const Device& device);
/// Null where there is none.
const Device* registered_device();

/// On which the tests of this program run: the registered device, or the reference and the CPU.
std::vector<Backend> backends();

/// Those of them that another backend judges: all but the reference.
std::vector<Backend> judged_backends();

std::string backend_name(const Backend& backend);
void PrintTo(const Backend& backend, std::ostream* out);

/// Outputs of `op` as poisoned_outputs makes them; workspace and outputs start poisoned.
TensorMap run(const Layer& layer, openmsa_op op, const std::vector<std::string>& names = {});

/// The same into outputs of one's own.
void run_into(const Layer& layer, openmsa_op op, TensorMap& outputs, const Rebind& rebind = {});

/// A test that needs the registered device, where there is one, and is skipped with its reason where that cannot run.
class OnAnyBackend : public testing::Test {
 protected:
  void SetUp() override;
};

/// A test with one body for all backends.
class OnBackend : public OnAnyBackend, public testing::WithParamInterface<Backend> {
 protected:
  std::int32_t block() const { return GetParam().block_size; }
  /// `shape` with the backend's dtype and block_size.
  LayerShape served(LayerShape shape) const;
  Layer layer(const LayerShape& shape, std::uint64_t seed = 1) const {
    return make_layer(served(shape), seed).on(GetParam().id);
  }
};

inline std::string backend_test_name(const testing::TestParamInfo<Backend>& info) { return backend_name(info.param); }

}  // namespace openmsa::test
