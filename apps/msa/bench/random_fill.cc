#include "msa/bench/random_fill.h"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "core/dtype.h"

namespace openmsa::cli {
namespace {

constexpr std::size_t kMostElements = (std::size_t{1} << 22) - 1;

std::size_t num_elements(const openmsa_tensor& tensor) {
  std::size_t count = 1;
  for (int d = 0; d < tensor.rank; ++d) count *= static_cast<std::size_t>(tensor.shape[d]);
  return count;
}

}  // namespace

void fill_randomly(Device& device, const openmsa_tensor& tensor, std::uint64_t seed) {
  auto* const data = static_cast<std::byte*>(tensor.data);
  const std::size_t bytes = num_elements(tensor) * openmsa_dtype_bytes(tensor.dtype);
  std::size_t filled = 0;
  core::visit_dtype(tensor.dtype, [&]<class Element>(Element) {
    RandomNumbers numbers(seed);
    std::vector<Element> elements(std::min(num_elements(tensor), kMostElements));
    std::generate(elements.begin(), elements.end(), [&] { return core::round_to<Element>(numbers.next()); });
    filled = elements.size() * sizeof(Element);
    device.copy(data, elements.data(), filled);
  });
  for (; filled < bytes; filled = std::min(2 * filled, bytes)) {
    device.copy(data + filled, data, std::min(filled, bytes - filled));
  }
}

}  // namespace openmsa::cli
