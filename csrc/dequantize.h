// Codes → values: what the binding hands to the kernel.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "output.h"

namespace questtrain {

struct DequantizeArguments {
  const void* codes;    // int8 [rows, width], or packed
  const float* scales;  // [rows]
  void* values;         // [rows, width]
  int64_t rows;
  int width;           // a multiple of 8
  int bits;            // a code's: 8, or 1, 2, 4 of a packed one
  int factor, offset;  // a code's integer is factor·code + offset
  Output output;       // the values' dtype
};

cudaError_t dequantize(const DequantizeArguments&, cudaStream_t);

}  // namespace questtrain
