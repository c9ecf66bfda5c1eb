// Which tile serves INT8 products with a side of 256 levels on sm_90.
#pragma once

#include "tiles_sm90.h"

namespace questtrain {

// The tile of `int8_linear` for the shape, or the nearest that has been compiled; its order of tiles
// and its swizzle too.
inline cudaError_t run_offset(Output output, OffsetArguments arguments, cudaStream_t stream) {
  const int tile = tile_for(arguments.rows, arguments.columns, arguments.width);
  set_order(tile, arguments);
  if (output == Output::half) return int8_128x128_pingpong_offset_half(arguments, stream);
  if (output == Output::float32) return int8_128x128_pingpong_offset_float(arguments, stream);
  switch (tile % kConfigurations) {
    case 6: case 7: return int8_64x64_swapped_offset(arguments, stream);
    case 0: case 4: case 5: return int8_128x128_pingpong_offset(arguments, stream);
    case 1: case 10:  // 128 × 192 of yᵀ, whose columns are y's rows
      arguments.along_columns = !arguments.along_columns;
      [[fallthrough]];
    case 2: case 3: return int8_192x128_pingpong_offset(arguments, stream);
    default: return int8_128x192_pingpong_offset(arguments, stream);
  }
}

}  // namespace questtrain
