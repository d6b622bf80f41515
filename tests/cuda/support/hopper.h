// Tests that need a Hopper GPU, and say so where there is none.
#pragma once

#include "support/run.h"

namespace openmsa::test {

class OnHopper : public OnAnyBackend {};

template <class Parameter>
class OnHopperWith : public OnHopper, public testing::WithParamInterface<Parameter> {};

}  // namespace openmsa::test
