// Checks of an op's arguments, for every device: which op, which argument, what is expected, what
// came, in the words of questtrain/kernels/checks.py. Through the LibTorch Stable ABI only.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "formats.h"

namespace questtrain {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Types = std::initializer_list<ScalarType>;

inline constexpr Types kFloating = {ScalarType::BFloat16, ScalarType::Half, ScalarType::Float};
constexpr int64_t kAny = -1;  // a size that may be any

template <class T>
constexpr ScalarType type_of() {
  return std::is_same_v<T, float>     ? ScalarType::Float
         : std::is_same_v<T, int8_t>  ? ScalarType::Char
         : std::is_same_v<T, uint8_t> ? ScalarType::Byte
         : std::is_same_v<T, int32_t> ? ScalarType::Int
                                      : ScalarType::Long;
}

// ---- words

inline const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Float8_e4m3fn: return "float8_e4m3fn";
    case ScalarType::Bool: return "bool";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Char: return "int8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::ComplexFloat: return "complex64";
    default: return "another dtype";
  }
}

// As Python's lists show them.
inline const char* shown(ScalarType type) { return name_of(type); }
inline int64_t shown(int64_t number) { return number; }

template <class Iterator>
std::string joined(Iterator first, Iterator last, const char* between = ", ") {
  std::ostringstream text;
  for (Iterator value = first; value != last; ++value)
    text << (value == first ? "" : between) << shown(*value);
  return text.str();
}

inline std::string one_of(Types types) { return joined(types.begin(), types.end(), " or "); }

inline std::string shape_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return "[" + joined(sizes.begin(), sizes.end()) + "]";
}

inline bool same_shape(const Tensor& tensor, const Tensor& other) {
  const auto sizes = tensor.sizes(), others = other.sizes();
  return std::equal(sizes.begin(), sizes.end(), others.begin(), others.end());
}

inline std::string size_of(int64_t size) { return size == kAny ? "'any'" : std::to_string(size); }

inline std::string device_of(const Tensor& tensor) {
  if (tensor.is_cuda()) return "cuda:" + std::to_string(tensor.get_device_index());
  return tensor.is_cpu() ? "cpu" : "another device";
}

// The fewest digits that are the same number.
inline std::string text_of(double value) {
  if (std::isnan(value)) return "nan";
  if (std::trunc(value) == value && std::fabs(value) < 1e16)
    return std::to_string(static_cast<int64_t>(value)) + ".0";
  for (int digits = 1;; ++digits) {
    std::ostringstream text;
    text.precision(digits);
    text << value;
    const std::string written = text.str();
    if (digits == 17 || std::strtod(written.c_str(), nullptr) == value) return written;
  }
}

// ---- checks

// Of one call of an op, whose tensors all have to lie on the device of `like`. What checks a tensor
// returns where its elements start.
class [[gnu::visibility("hidden")]] Check {
 public:
  Check(const char* op, const Tensor& like) : op(op), like(like) {}

  const char* const op;
  const Tensor& like;

  template <class... Words>
  [[noreturn]] void fail(const Words&... words) const {
    std::ostringstream text;
    text << op << ": ";
    (text << ... << words);
    throw std::runtime_error(text.str());
  }

  // [rows, columns]; contiguous, and on a GPU aligned for accesses of 16 bytes.
  void* matrix(const char* name, const Tensor& tensor, int64_t rows, int64_t columns,
               Types types) const {
    two_dimensional(name, tensor);
    if ((rows != kAny && tensor.size(0) != rows) ||
        (columns != kAny && tensor.size(1) != columns))
      fail(name, " must be [", size_of(rows), ", ", size_of(columns), "], not ", shape_of(tensor));
    return aligned(name, tensor, types);
  }

  template <class T>
  T* matrix(const char* name, const Tensor& tensor, int64_t rows, int64_t columns) const {
    return static_cast<T*>(matrix(name, tensor, rows, columns, {type_of<T>()}));
  }

  // [length], else as a matrix.
  void* vector(const char* name, const Tensor& tensor, int64_t length, Types types) const {
    one_dimensional(name, tensor, length);
    return aligned(name, tensor, types);
  }

  template <class T>
  T* vector(const char* name, const Tensor& tensor, int64_t length) const {
    return static_cast<T*>(vector(name, tensor, length, {type_of<T>()}));
  }

  template <class T>
  T* scalar(const char* name, const Tensor& tensor) const {
    if (tensor.dim() != 0) fail(name, " must be a scalar, not of shape ", shape_of(tensor));
    return static_cast<T*>(dense(name, tensor, {type_of<T>()}));
  }

  void two_dimensional(const char* name, const Tensor& tensor) const {
    if (tensor.dim() != 2) fail(name, " must have 2 dimensions, not shape ", shape_of(tensor));
  }

  void one_dimensional(const char* name, const Tensor& tensor, int64_t length) const {
    if (tensor.dim() != 1 || tensor.size(0) != length)
      fail(name, " must be [", length, "], not ", shape_of(tensor));
  }

  void shaped_like(const char* name, const Tensor& tensor, const Tensor& other) const {
    if (!same_shape(tensor, other))
      fail(name, " must be ", shape_of(other), ", not ", shape_of(tensor));
  }

  void* aligned(const char* name, const Tensor& tensor, Types types) const {
    void* data = dense(name, tensor, types);
    if (reinterpret_cast<uintptr_t>(data) % 16 != 0 && tensor.is_cuda())
      fail(name, " must start at a multiple of 16 bytes");
    return data;
  }

  void* dense(const char* name, const Tensor& tensor, Types types) const {
    kind(name, tensor, types);
    if (!tensor.is_contiguous()) fail(name, " must be contiguous");
    return tensor.data_ptr();
  }

  void kind(const char* name, const Tensor& tensor, Types types) const {
    const ScalarType type = tensor.scalar_type();
    if (std::find(types.begin(), types.end(), type) == types.end())
      fail(name, " must be ", one_of(types), ", not torch.", name_of(type));
    if (!(tensor.device() == like.device()))
      fail(name, " must be on ", device_of(like), ", not ", device_of(tensor));
  }

  // ---- numbers

  void output(ScalarType dtype) const {
    if (std::find(kFloating.begin(), kFloating.end(), dtype) == kFloating.end())
      fail("dtype must be ", one_of(kFloating), ", not torch.", name_of(dtype));
  }

  void multiple(const char* what, int64_t size, int64_t divisor) const {
    if (size <= 0 || size % divisor) fail(what, " ", size, " must be a multiple of ", divisor);
  }

  void width_at_most(int64_t width, int64_t most) const {
    if (width > most) fail("the width ", width, " exceeds ", most);
  }

  void levels(const char* name, int64_t levels, int64_t most = kOffsetLevels) const {
    const auto end = std::upper_bound(std::begin(kLevels), std::end(kLevels), most);
    if (std::find(std::begin(kLevels), end, levels) == end)
      fail(name, " must be one of (", joined(std::begin(kLevels), end), "), not ", levels);
  }

  // Returns the bits of one packed code: the smallest of 1, 2 and 4 that hold so many levels.
  int packed_levels(const char* name, int64_t levels) const {
    if (levels < 2 || levels > 16) fail(name, " of packed codes must be 2 to 16, not ", levels);
    return levels == 2 ? 1 : levels <= 4 ? 2 : 4;
  }

  // Rows of `width` elements that are rotated in blocks of `block`.
  void block(int64_t width, int64_t block) const {
    if (std::find(std::begin(kBlocks), std::end(kBlocks), block) == std::end(kBlocks))
      fail("block must be one of (", joined(std::begin(kBlocks), std::end(kBlocks)), "), not ", block);
    if (width <= 0 || width % 32 || width % block)
      fail("the width ", width, " must be a multiple of 32 and of the block ", block);
  }

  // What rows of `width` elements are quantized to; returns the bits of one code.
  int format(int64_t width, int64_t levels, int64_t most_levels, double alpha, int64_t block,
             bool packed = false) const {
    this->levels("levels", levels, most_levels);
    const int bits = packed ? packed_levels("levels", levels) : 8;
    this->block(width, block);
    if (!(alpha > 0)) fail("alpha must be positive, not ", text_of(alpha));
    width_at_most(width, kLargestWidth);
    return bits;
  }
};

}  // namespace questtrain
