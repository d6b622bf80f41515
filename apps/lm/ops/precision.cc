#include "lm/ops/precision.h"

#include "lm/ops/parallel.h"
#include "lm/ops/simd.h"

namespace openmsa::lm {
namespace {

OPENMSA_VECTOR_CLONES void round_range(float* values, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) values[i] = bf16_rounded(values[i]);
}

}  // namespace

void round_to(Precision precision, std::span<float> values) {
  constexpr std::int64_t kChunk = 1 << 16;
  if (precision == Precision::kFp32) return;
  parallel_chunks(static_cast<std::int64_t>(values.size()), kChunk,
                  [&](std::int64_t begin, std::int64_t end) { round_range(values.data() + begin, end - begin); });
}

}  // namespace openmsa::lm
