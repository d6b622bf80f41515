// Health of the index branches, as means over the sparse layers of the latest forward pass.
#pragma once

#include "lm/model/decoder.h"

namespace openmsa::lm {

/// Recall of the selection, over the first sequence of the batch.
Recall mean_recall(const Decoder& decoder, PackedAttention& attention, const Sequences& sequences,
                   IndexKeys index_keys = IndexKeys::kFp32);

/// L_KL over the phase's tokens, without gradients.
double mean_kl_loss(const Decoder& decoder, PackedAttention& attention, Phase phase, const Sequences& sequences);

}  // namespace openmsa::lm
