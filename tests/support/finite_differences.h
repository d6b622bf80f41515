// Gradients by central differences, in float64.
#pragma once

#include <functional>
#include <string>

#include "support/run.h"

namespace openmsa::test {

/// `gradient` is that of loss(layer) with respect to the tensor `name`, element by element.
void expect_gradient(Layer layer, const std::string& name, const Buffer& gradient,
                     const std::function<double(const Layer&)>& loss);

}  // namespace openmsa::test
