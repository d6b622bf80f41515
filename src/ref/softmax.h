// Log-sum-exp, natural logarithm.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace openmsa::ref {

template <class C>
constexpr C kInfinity = std::numeric_limits<C>::infinity();

/// log sum exp(scores), shifted by the maximum so that nothing overflows; -inf when there is nothing to sum.
template <class C>
C log_sum_exp(const std::vector<C>& scores) {
  C shift = -kInfinity<C>;
  for (const C score : scores) shift = std::max(shift, score);
  if (shift == -kInfinity<C>) shift = 0;  // exp(-inf - -inf) would be NaN
  C sum = 0;
  for (const C score : scores) sum += std::exp(score - shift);
  return shift + std::log(sum);
}

}  // namespace openmsa::ref
