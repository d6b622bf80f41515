#include "support/buffer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <numeric>

#include "core/dtype.h"

namespace openmsa::test {
namespace {

Shape row_major(const Shape& shape) {
  Shape strides(shape.size(), 1);
  for (std::size_t d = shape.size(); d-- > 1;) strides[d - 1] = strides[d] * shape[d];
  return strides;
}

}  // namespace

Buffer::Buffer(openmsa_dtype dtype, Shape shape) : Buffer(strided(dtype, shape, row_major(shape))) {}

Buffer::Buffer(openmsa_dtype dtype, Shape shape, const std::vector<double>& values) : Buffer(dtype, std::move(shape)) {
  assign(values);
}

Buffer Buffer::strided(openmsa_dtype dtype, Shape shape, Shape strides) {
  Buffer result;
  result.dtype_ = dtype;
  result.shape_ = std::move(shape);
  result.strides_ = std::move(strides);
  std::int64_t elements = result.size() == 0 ? 0 : 1;
  if (elements != 0) {
    for (std::size_t d = 0; d < result.shape_.size(); ++d) elements += (result.shape_[d] - 1) * result.strides_[d];
  }
  result.bytes_.resize(static_cast<std::size_t>(elements) * openmsa_dtype_bytes(dtype));
  result.poison();
  return result;
}

void Buffer::poison() {
  // All ones is NaN in every float type; 0x7f7f7f7f is far past every block, page and length.
  std::fill(bytes_.begin(), bytes_.end(), dtype_ == OPENMSA_INT32 ? std::byte{0x7f} : std::byte{0xff});
}

std::int64_t Buffer::size() const {
  return std::accumulate(shape_.begin(), shape_.end(), std::int64_t{1}, std::multiplies<>());
}

openmsa_tensor Buffer::view() const {
  openmsa_tensor tensor{};
  if (shape_.empty()) return tensor;
  tensor.data = const_cast<std::byte*>(bytes_.data());
  tensor.dtype = dtype_;
  tensor.rank = static_cast<std::int32_t>(shape_.size());
  std::copy(shape_.begin(), shape_.end(), tensor.shape);
  std::copy(strides_.begin(), strides_.end(), tensor.strides);
  return tensor;
}

std::int64_t Buffer::flat(std::initializer_list<std::int64_t> index) const {
  std::int64_t result = 0;
  std::size_t d = 0;
  for (const std::int64_t i : index) {
    EXPECT_TRUE(i >= 0 && i < shape_[d]) << "index " << i << " in dimension " << d << " of " << shape_[d];
    result = result * shape_[d++] + i;
  }
  return result;
}

std::int64_t Buffer::offset(std::int64_t i) const {
  std::int64_t result = 0;
  for (std::size_t d = shape_.size(); d-- > 0;) {
    result += i % shape_[d] * strides_[d];
    i /= shape_[d];
  }
  return result;
}

double Buffer::operator[](std::int64_t i) const {
  if (dtype_ == OPENMSA_INT32) return reinterpret_cast<const std::int32_t*>(bytes_.data())[offset(i)];
  return core::visit_dtype(dtype_, [&]<class T>(T) -> double {
    return core::to_float(reinterpret_cast<const T*>(bytes_.data())[offset(i)]);
  });
}

void Buffer::set(std::int64_t i, double value) {
  if (dtype_ == OPENMSA_INT32) {
    reinterpret_cast<std::int32_t*>(bytes_.data())[offset(i)] = static_cast<std::int32_t>(value);
  } else {
    core::visit_dtype(dtype_,
                      [&]<class T>(T) { reinterpret_cast<T*>(bytes_.data())[offset(i)] = core::round_to<T>(value); });
  }
}

std::vector<double> Buffer::values() const {
  std::vector<double> result(static_cast<std::size_t>(size()));
  for (std::int64_t i = 0; i < size(); ++i) result[static_cast<std::size_t>(i)] = (*this)[i];
  return result;
}

void Buffer::assign(const std::vector<double>& values) {
  ASSERT_EQ(static_cast<std::int64_t>(values.size()), size());
  for (std::int64_t i = 0; i < size(); ++i) set(i, values[static_cast<std::size_t>(i)]);
}

void Buffer::fill(double value) {
  for (std::int64_t i = 0; i < size(); ++i) set(i, value);
}

void Buffer::assign_bytes(std::vector<std::byte> bytes) {
  ASSERT_EQ(bytes.size(), bytes_.size());
  bytes_ = std::move(bytes);
}

Buffer int_buffer(const std::vector<std::int64_t>& values, Shape shape) {
  if (shape.empty()) shape = {static_cast<std::int64_t>(values.size())};
  return Buffer(OPENMSA_INT32, std::move(shape), std::vector<double>(values.begin(), values.end()));
}

Buffer restrided(const Buffer& buffer, Shape strides) {
  Buffer result = Buffer::strided(buffer.dtype(), buffer.shape(), std::move(strides));
  for (std::int64_t i = 0; i < buffer.size(); ++i) result.set(i, buffer[i]);
  return result;
}

Buffer rows(const Buffer& buffer, std::int64_t begin, std::int64_t count) {
  Shape shape = buffer.shape();
  const std::int64_t row = shape[0] == 0 ? 0 : buffer.size() / shape[0];
  shape[0] = count;
  Buffer result(buffer.dtype(), shape);
  for (std::int64_t i = 0; i < count * row; ++i) result.set(i, buffer[begin * row + i]);
  return result;
}

}  // namespace openmsa::test
