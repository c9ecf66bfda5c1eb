// Argument checks that say which op, which argument, what is expected, what came: what the bindings
// of every device share, through the LibTorch Stable ABI only.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <string>

#include "limits.h"

namespace questtrain {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    case ScalarType::Float: return "float32";
    case ScalarType::Char: return "int8";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    default: return "another dtype";
  }
}

inline std::string shape_of(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t i = 0; i < tensor.dim(); ++i)
    text += (i ? ", " : "") + std::to_string(tensor.size(i));
  return text + "]";
}

inline void check_dtype(const Tensor& tensor, ScalarType type, const char* op, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == type, op, ": ", name, " must be ", name_of(type),
                  ", not ", name_of(tensor.scalar_type()));
}

inline bool is_floating(ScalarType type) {
  return type == ScalarType::BFloat16 || type == ScalarType::Half || type == ScalarType::Float;
}

inline void check_floating(ScalarType type, const char* op, const char* name) {
  STD_TORCH_CHECK(is_floating(type), op, ": ", name,
                  " must be bfloat16, float16 or float32, not ", name_of(type));
}

inline void check_rows_and_columns(const Tensor& tensor, int64_t rows, int64_t columns,
                                   const char* op, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == rows && tensor.size(1) == columns, op,
                  ": ", name, " must be [", rows, ", ", columns, "], not ", shape_of(tensor));
}

inline void check_length(const Tensor& tensor, int64_t length, const char* op, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == length, op, ": ", name, " must be [",
                  length, "], not ", shape_of(tensor));
}

inline void check_contiguous(const Tensor& tensor, const char* op, const char* name) {
  STD_TORCH_CHECK(tensor.is_contiguous(), op, ": ", name, " must be contiguous");
}

inline void check_two_dimensional(const Tensor& tensor, const char* op, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 2, op, ": ", name, " must have 2 dimensions, not shape ",
                  shape_of(tensor));
}

// Rows of `width` elements that are rotated in blocks of `block`.
inline void check_block(int64_t width, int64_t block, const char* op) {
  STD_TORCH_CHECK(block == 1 || (block >= 16 && block <= 256 && (block & (block - 1)) == 0), op,
                  ": block must be 1, 16, 32, 64, 128 or 256, not ", block);
  STD_TORCH_CHECK(width > 0 && width % 32 == 0 && width % block == 0, op, ": the width ", width,
                  " must be a multiple of 32 and of the block ", block);
}

inline void check_levels(int64_t levels, int64_t most, const char* op) {
  const bool power_of_two = levels >= 2 && levels <= most && (levels & (levels - 1)) == 0;
  STD_TORCH_CHECK(power_of_two || levels == 3, op,
                  ": levels must be 3 or a power of two from 2 to ", most, ", not ", levels);
}

// Rows of `width` elements that are scaled to `alpha` times their rms.
inline void check_scaled_rows(int64_t width, double alpha, const char* op) {
  STD_TORCH_CHECK(width <= kLargestWidth, op, ": the width ", width, " exceeds ", kLargestWidth);
  STD_TORCH_CHECK(alpha > 0, op, ": alpha must be positive, not ", alpha);
}

// Bits of one packed code: the smallest container of 1, 2 or 4 bits that holds `levels`.
inline int container_bits(int64_t levels, const char* op) {
  STD_TORCH_CHECK(levels >= 2 && levels <= 16, op, ": packed codes hold 2 to 16 levels, not ",
                  levels);
  return levels == 2 ? 1 : levels <= 4 ? 2 : 4;
}

}  // namespace questtrain
