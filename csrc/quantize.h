// Rotate, scale and quantize rows: what the binding hands to the kernels.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "formats.h"

namespace questtrain {

// What is quantized: x itself, RMSNorm(x), RMSNorm(x + residual), or silu(gate)·up of [gate | up].
enum class Operand { plain, rmsnorm, add_rmsnorm, swiglu };

struct QuantizeArguments {
  const void* x;         // [rows, width]; swiglu: [rows, 2·width]
  const void* residual;  // [rows, width], add_rmsnorm only
  const void* weight;    // [width], both RMSNorms
  bool weight_is_float;  // fp32, else x's dtype
  void* hidden;          // [rows, width], add_rmsnorm only: x + residual
  void* codes;           // int8 [rows, width], or packed
  float* scales;         // [rows]: the value of one unit of the integer codes
  int32_t* sums;         // [rows]: the sum of the int8 codes
  uint8_t* mask;         // [rows, width/8] or null
  int64_t rows;
  int width;
  int levels;
  int block;           // Hadamard block, 1 for none
  int container_bits;  // 8: int8 codes; 1, 2, 4: packed
  int tile_bits;       // not 0: int8 codes, in the order for packed_tiles_sm90 of such a weight
  float alpha;         // the grid's half-width in units of the row's rms
  float trust;         // mask: |x| <= trust · half-width
  float epsilon;       // RMSNorm's
  float steps, inverse_steps, inverse_width;  // levels-1, 1/(levels-1), 1/width
  float orthonormal;                   // block^-1/2
  uint32_t code_factor, code_lift;  // int8 codes of 4 indices, see `int8_codes` in quantize.cuh
};

// Of rows of __nv_bfloat16, __half or float.
template <class Element>
cudaError_t launch_quantize(Operand, const QuantizeArguments&, cudaStream_t);

}  // namespace questtrain
