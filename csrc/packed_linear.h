// y = x·wᵀ with int8 activations and packed 1-, 2- or 4-bit weights, for up to 64 rows of x.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "output.h"
#include "quantize.h"

namespace questtrain {

struct PackedLinearArguments {
  const int8_t* x;            // [rows, width] integer codes
  const float* x_scales;      // [rows]
  const int32_t* x_sums;      // [rows]
  const uint8_t* weight;      // [columns, width · bits / 8] level indices
  const float* weight_scales; // [columns]
  void* y;                    // [rows, columns]
  Output output;
  int rows, columns, width, levels;
};

constexpr int kLargestPackedRows = 64;
constexpr int kLargestFusedRows = 8, kMostRowsOnTheWay = 2, kLargestTiledRows = 1024;
constexpr int kLargestFusedWidth = 16384;

// Of weights of 1, 2 or 4 bits.
template <int bits>
cudaError_t launch_packed_linear(const PackedLinearArguments&, cudaStream_t);

// The same with x quantized on the way: `a.x`, its scales and sums are not read, `q`'s outputs but
// `hidden` are not written. For few rows of 16-bit elements, y's, and Hadamard blocks of 128.
template <int bits>
cudaError_t launch_quantize_linear(Operand, const PackedLinearArguments& a,
                                   const QuantizeArguments& q, cudaStream_t);

}  // namespace questtrain
