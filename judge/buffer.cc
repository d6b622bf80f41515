#include "judge/buffer.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <string>

#include "core/dtype.h"

namespace openmsa::judge {
namespace {

Shape row_major(const Shape& shape) {
  Shape strides(shape.size(), 1);
  for (std::size_t d = shape.size(); d-- > 1;) strides[d - 1] = strides[d] * shape[d];
  return strides;
}

/// Distance in elements of the i-th element in row-major order from the first one.
std::int64_t offset_of(std::int64_t i, const std::int64_t* shape, const std::int64_t* strides, std::size_t rank) {
  std::int64_t result = 0;
  for (std::size_t d = rank; d-- > 0;) {
    result += i % shape[d] * strides[d];
    i /= shape[d];
  }
  return result;
}

double read(openmsa_dtype dtype, const std::byte* data, std::int64_t offset) {
  if (dtype == OPENMSA_INT32) return reinterpret_cast<const std::int32_t*>(data)[offset];
  if (dtype == OPENMSA_INT64) throw std::logic_error("a double does not hold an int64: see judge/shards.h");
  return core::visit_dtype(
      dtype, [&]<class T>(T) -> double { return core::to_float(reinterpret_cast<const T*>(data)[offset]); });
}

void require_size(std::size_t got, std::size_t expected) {
  if (got == expected) return;
  throw std::logic_error("expected " + std::to_string(expected) + " values, got " + std::to_string(got));
}

}  // namespace

Buffer::Buffer(openmsa_dtype dtype, const Shape& shape) : Buffer(strided(dtype, shape, row_major(shape))) {}

Buffer::Buffer(openmsa_dtype dtype, const Shape& shape, const std::vector<double>& values) : Buffer(dtype, shape) {
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
    if (i < 0 || i >= shape_[d]) {
      throw std::out_of_range("index " + std::to_string(i) + " in dimension " + std::to_string(d) + " of " +
                              std::to_string(shape_[d]));
    }
    result = result * shape_[d++] + i;
  }
  return result;
}

std::int64_t Buffer::offset(std::int64_t i) const {
  return offset_of(i, shape_.data(), strides_.data(), shape_.size());
}

double Buffer::operator[](std::int64_t i) const { return read(dtype_, bytes_.data(), offset(i)); }

void Buffer::set(std::int64_t i, double value) {
  if (dtype_ == OPENMSA_INT64) throw std::logic_error("a double does not hold an int64: see judge/shards.h");
  if (dtype_ == OPENMSA_INT32) {
    reinterpret_cast<std::int32_t*>(bytes_.data())[offset(i)] = static_cast<std::int32_t>(value);
  } else {
    core::visit_dtype(dtype_,
                      [&]<class T>(T) { reinterpret_cast<T*>(bytes_.data())[offset(i)] = core::round_to<T>(value); });
  }
}

std::vector<double> Buffer::values() const { return to_doubles(view()); }

void Buffer::assign(const std::vector<double>& values) {
  require_size(values.size(), static_cast<std::size_t>(size()));
  for (std::int64_t i = 0; i < size(); ++i) set(i, values[static_cast<std::size_t>(i)]);
}

void Buffer::fill(double value) {
  for (std::int64_t i = 0; i < size(); ++i) set(i, value);
}

void Buffer::assign_bytes(std::vector<std::byte> bytes) {
  require_size(bytes.size(), bytes_.size());
  bytes_ = std::move(bytes);
}

std::vector<double> to_doubles(const openmsa_tensor& tensor) {
  std::int64_t count = tensor.rank == 0 ? 0 : 1;
  for (int d = 0; d < tensor.rank; ++d) count *= tensor.shape[d];
  std::vector<double> result(static_cast<std::size_t>(count));
  const auto* const data = static_cast<const std::byte*>(tensor.data);
  const auto rank = static_cast<std::size_t>(tensor.rank);
  for (std::int64_t i = 0; i < count; ++i) {
    result[static_cast<std::size_t>(i)] = read(tensor.dtype, data, offset_of(i, tensor.shape, tensor.strides, rank));
  }
  return result;
}

Buffer int_buffer(const std::vector<std::int64_t>& values, Shape shape) {
  if (shape.empty()) shape = {static_cast<std::int64_t>(values.size())};
  return Buffer(OPENMSA_INT32, shape, std::vector<double>(values.begin(), values.end()));
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

}  // namespace openmsa::judge
