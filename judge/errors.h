// How far a result lies from the reference.
#pragma once

#include <span>

#include "judge/buffer.h"

namespace openmsa::judge {

/// ||x - reference|| / ||reference|| over parts that are added one by one; infinite once a part has a NaN or an Inf.
/// 0 / 0 is 0.
class RelativeError {
 public:
  void add(std::span<const double> x, std::span<const double> reference);
  double value() const;

 private:
  double difference_ = 0, norm_ = 0;  // squares
};

/// RelativeError of one part. Throws std::logic_error where the shapes differ.
double relative_error(const Buffer& x, const Buffer& reference);

/// Largest |x - reference|; infinities must stand in the same places, else the result is infinite. NaN is infinite too.
double absolute_error(const Buffer& x, const Buffer& reference);

/// Bytes of x that are not those of a reference with the same dtype and strides.
double different_bytes(const Buffer& x, const Buffer& reference);

}  // namespace openmsa::judge
