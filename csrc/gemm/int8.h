// y = x·wᵀ of int8 matrices, scaled by row and column: what the binding hands to the kernels.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../output.h"

namespace questtrain {

struct Int8Arguments {
  const int8_t* x;             // [rows, width]
  const int8_t* weight;        // [columns, width]
  const float* x_scales;       // [rows]
  const float* weight_scales;  // [columns]
  void* y;                     // [rows, columns]
  int rows, columns, width;
  int swizzle;    // how many output tiles side by side are worked on together: 1, 2, 4, 8
  bool along_columns;  // the order of output tiles
};

// One tile configuration; cudaErrorNotSupported for a shape that it cannot do.
using Int8Kernel = cudaError_t (*)(const Int8Arguments&, cudaStream_t);

}  // namespace questtrain
