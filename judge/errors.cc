#include "judge/errors.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace openmsa::judge {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

void require_same_shape(const Buffer& x, const Buffer& reference) {
  if (x.shape() != reference.shape()) throw std::logic_error("a result and its reference have different shapes");
}

}  // namespace

void RelativeError::add(std::span<const double> x, std::span<const double> reference) {
  if (x.size() != reference.size()) throw std::logic_error("a result and its reference have different sizes");
  for (std::size_t i = 0; i < x.size(); ++i) {
    difference_ += (x[i] - reference[i]) * (x[i] - reference[i]);
    norm_ += reference[i] * reference[i];
  }
}

double RelativeError::value() const {
  if (difference_ == 0) return 0;
  const double error = std::sqrt(difference_ / norm_);
  return std::isnan(error) ? kInfinity : error;
}

double relative_error(const Buffer& x, const Buffer& reference) {
  require_same_shape(x, reference);
  RelativeError error;
  error.add(x.values(), reference.values());
  return error.value();
}

double absolute_error(const Buffer& x, const Buffer& reference) {
  require_same_shape(x, reference);
  const std::vector<double> got = x.values(), expected = reference.values();
  double largest = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (got[i] == expected[i]) continue;
    const double error = std::abs(got[i] - expected[i]);
    largest = std::isnan(error) ? kInfinity : std::max(largest, error);
  }
  return largest;
}

double different_bytes(const Buffer& x, const Buffer& reference) {
  const std::vector<std::byte>&got = x.bytes(), &expected = reference.bytes();
  if (got.size() != expected.size()) throw std::logic_error("a result and its reference have different sizes");
  double different = 0;
  for (std::size_t i = 0; i < got.size(); ++i) different += got[i] != expected[i];
  return different;
}

}  // namespace openmsa::judge
