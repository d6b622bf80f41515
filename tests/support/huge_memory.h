// A tensor whose rows lie more than 2^31 elements apart, in memory that the system maps only where it is touched.
#pragma once

#include <openmsa/openmsa.h>

#include <cstddef>
#include <memory>

#include "support/run.h"

namespace openmsa::test {

class HugeTensor {
 public:
  /// A copy of `compact`, spread out along its first dimension.
  explicit HugeTensor(const openmsa_tensor& compact);

  bool is_mapped() const { return memory_ != nullptr; }
  openmsa_tensor view() const { return view_; }
  void copy_to(Buffer& buffer) const;

 private:
  std::shared_ptr<std::byte> memory_;
  openmsa_tensor view_;
};

}  // namespace openmsa::test
