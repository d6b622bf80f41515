#include "lm/ops/precision.h"

#include "lm/ops/parallel.h"
#include "lm/ops/simd.h"

namespace openmsa::lm {

void round_to(Precision precision, std::span<float> values) {
  constexpr std::int64_t kChunk = 1 << 16;
  if (precision == Precision::kFp32) return;
  parallel_chunks(std::ssize(values), kChunk, [&](std::int64_t begin, std::int64_t end) {
    row_ops().round_to_bf16(end - begin, values.data() + begin);
  });
}

}  // namespace openmsa::lm
