// A tensor that owns its memory in this process, whatever its dtype and strides; filled and read as doubles, but for int64,
// of which it is the bytes alone.
#pragma once

#include <openmsa/openmsa.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <vector>

namespace openmsa::judge {

using Shape = std::vector<std::int64_t>;

class Buffer {
 public:
  Buffer() = default;  // absent

  /// Poisoned: NaN in every element, or a number that is no index.
  Buffer(openmsa_dtype dtype, const Shape& shape);
  /// `values` in row-major order, rounded to the dtype.
  Buffer(openmsa_dtype dtype, const Shape& shape, const std::vector<double>& values);
  /// The same with strides of one's own; gaps between the elements stay poisoned.
  static Buffer strided(openmsa_dtype dtype, Shape shape, Shape strides);

  openmsa_dtype dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  std::int64_t size() const;

  /// A view of the memory, which copies of this buffer do not share.
  openmsa_tensor view() const;

  /// Element number `i` in row-major order, whatever the strides.
  double operator[](std::int64_t i) const;
  void set(std::int64_t i, double value);
  double at(std::initializer_list<std::int64_t> index) const { return (*this)[flat(index)]; }
  void set(std::initializer_list<std::int64_t> index, double value) { set(flat(index), value); }

  std::vector<double> values() const;
  void assign(const std::vector<double>& values);
  void fill(double value);
  Buffer as(openmsa_dtype dtype) const { return Buffer(dtype, shape_, values()); }

  /// All memory, gaps included.
  const std::vector<std::byte>& bytes() const { return bytes_; }
  void assign_bytes(std::vector<std::byte> bytes);
  bool same_bits(const Buffer& other) const { return bytes_ == other.bytes_; }

 private:
  std::int64_t flat(std::initializer_list<std::int64_t> index) const;
  std::int64_t offset(std::int64_t i) const;  // in elements, of the i-th element in row-major order
  void poison();

  openmsa_dtype dtype_ = OPENMSA_FLOAT32;
  Shape shape_;
  Shape strides_;
  std::vector<std::byte> bytes_;
};

/// The elements of a tensor of this process in row-major order, whatever its dtype and strides.
std::vector<double> to_doubles(const openmsa_tensor& tensor);

/// int32 values with a shape; one dimension when none is given.
Buffer int_buffer(const std::vector<std::int64_t>& values, Shape shape = {});

/// `buffer` with the elements in the places that `strides` names.
Buffer restrided(const Buffer& buffer, Shape strides);

/// Entries [begin, begin + count) of the first dimension, contiguous.
Buffer rows(const Buffer& buffer, std::int64_t begin, std::int64_t count);

}  // namespace openmsa::judge
