// y = x·wᵀ of int8 matrices, scaled by row and column: what the binding hands to the kernels.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../output.h"

namespace questtrain {

struct Int8Arguments {
  const void* x;               // [rows, width] int8; int4: [rows, width / 2] bytes
  const void* weight;          // [columns, width], likewise
  const float* x_scales;       // [rows]
  const float* weight_scales;  // [columns]
  void* y;                     // [rows, columns]
  int rows, columns, width;
  int swizzle;    // how many output tiles side by side are worked on together: 1, 2, 4, 8
  bool along_columns;  // the order of output tiles
};

// Where codes c are not the integers v, the sum of the integers' products is made of that of the
// codes':
//
//   Σ v_x·v_w = product_factor · Σ c_x·c_w + sum_factor · (x_sum + weight_sum) + constant
//
// in int32. int8 codes of 256 levels stand for 2c + 1: int32 holds it for all widths up to 33,024,
// 255² · 33,024 < 2^31. 4-bit indices stand for 2c - 15.
struct OffsetArguments : Int8Arguments {
  const int32_t* x_sums;       // [rows], of codes or, int4, of integers; null: none
  const int32_t* weight_sums;  // [columns]
  int32_t product_factor, sum_factor, constant;
};

// One tile configuration; cudaErrorNotSupported for a shape that it cannot do.
using Int8Kernel = cudaError_t (*)(const Int8Arguments&, cudaStream_t);

}  // namespace questtrain
