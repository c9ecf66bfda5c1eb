// The tile configurations of INT8 products with a side of 256 levels on sm_90, and which one serves.
#pragma once

#include "int8.h"

namespace questtrain {

cudaError_t int8_128x192_pingpong_offset(const OffsetArguments&, cudaStream_t);
cudaError_t int8_128x128_pingpong_offset(const OffsetArguments&, cudaStream_t);
cudaError_t int8_128x256_cooperative_offset(const OffsetArguments&, cudaStream_t);
cudaError_t int8_64x64_swapped_offset(const OffsetArguments&, cudaStream_t);
cudaError_t int8_128x128_pingpong_offset_half(const OffsetArguments&, cudaStream_t);
cudaError_t int8_128x128_pingpong_offset_float(const OffsetArguments&, cudaStream_t);

// Small tiles for few rows or few tiles; else the two that win most of tiles_sm90.inc: 192 columns
// a tile, or 256 where 192 would leave more than a fiftieth of the last tile's work undone.
inline OffsetKernel offset_kernel(Output output, int rows, int columns) {
  constexpr int kProcessors = 132;
  if (output == Output::half) return int8_128x128_pingpong_offset_half;
  if (output == Output::float32) return int8_128x128_pingpong_offset_float;
  if (rows <= 128) return int8_64x64_swapped_offset;
  const int64_t row_tiles = (rows + 127) / 128, column_tiles = (columns + 191) / 192;
  if (row_tiles * column_tiles < kProcessors) return int8_128x128_pingpong_offset;
  const bool fits = column_tiles * 192 * 50 <= int64_t(columns) * 51;
  return fits ? int8_128x192_pingpong_offset : int8_128x256_cooperative_offset;
}

}  // namespace questtrain
