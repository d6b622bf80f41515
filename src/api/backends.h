// The backends of this build, by their one interface.
#pragma once

#include <openmsa/openmsa.h>

#include "core/backend.h"

namespace openmsa::api {

/// The backend of a plan's configuration, which core::make_plan has checked.
const core::Backend& backend(openmsa_backend name);

}  // namespace openmsa::api
