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

// Where a side has 256 levels its int8 codes c stand for 2c + 1, and the sum of the integers'
// products is made of that of the codes':
//
//   Σ v_x·v_w = product_factor · Σ c_x·c_w + sum_factor · (x_sum + weight_sum) + constant
//
// in int32, which holds it for all widths up to 33,024: 255² · 33,024 < 2^31.
struct OffsetArguments : Int8Arguments {
  const int32_t* x_sums;       // [rows] of codes; null where the weight has fewer levels
  const int32_t* weight_sums;  // [columns] of codes; null where x has fewer levels
  int32_t product_factor, sum_factor, constant;
};

// One tile configuration; cudaErrorNotSupported for a shape that it cannot do.
using Int8Kernel = cudaError_t (*)(const Int8Arguments&, cudaStream_t);

}  // namespace questtrain
