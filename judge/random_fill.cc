#include "judge/random_fill.h"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "core/dtype.h"

namespace openmsa::judge {
namespace {

constexpr std::size_t kMostElements = (std::size_t{1} << 22) - 1;

std::size_t num_elements(const openmsa_tensor& tensor) {
  std::size_t count = 1;
  for (int d = 0; d < tensor.rank; ++d) count *= static_cast<std::size_t>(tensor.shape[d]);
  return count;
}

}  // namespace

std::vector<std::byte> rounded(openmsa_dtype dtype, const std::vector<float>& values) {
  std::vector<std::byte> bytes(values.size() * openmsa_dtype_bytes(dtype));
  core::visit_dtype(dtype, [&]<class Element>(Element) {
    std::transform(values.begin(), values.end(), reinterpret_cast<Element*>(bytes.data()),
                   [](float value) { return core::round_to<Element>(value); });
  });
  return bytes;
}

void fill_randomly(const Copy& copy, const openmsa_tensor& tensor, std::uint64_t seed) {
  RandomNumbers numbers(seed);
  std::vector<float> values(std::min(num_elements(tensor), kMostElements));
  std::generate(values.begin(), values.end(), [&] { return numbers.next(); });
  const std::vector<std::byte> beginning = rounded(tensor.dtype, values);
  auto* const data = static_cast<std::byte*>(tensor.data);
  copy(data, beginning.data(), beginning.size());
  const std::size_t bytes = num_elements(tensor) * openmsa_dtype_bytes(tensor.dtype);
  for (std::size_t filled = beginning.size(); filled < bytes; filled = std::min(2 * filled, bytes)) {
    copy(data + filled, data, std::min(filled, bytes - filled));
  }
}

}  // namespace openmsa::judge
