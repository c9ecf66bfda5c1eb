// The tile configurations of INT8 products on sm_90, and which one serves a shape.
//
// A tile is named by one number for the autotuner: configuration + 12·log2(swizzle) + 48·order, where
// order 1 walks along the columns of y, of yᵀ where the tile is swapped.
#pragma once

#include <cmath>
#include <cstdint>
#include <iterator>

#include "../tuned_shape.h"
#include "int8.h"

namespace questtrain {

#define OTHER_TILE(name, Arguments, ...) cudaError_t name(const Arguments&, cudaStream_t);
#include "configurations_sm90.inc"

constexpr Int8Kernel kTiles[] = {
#define NUMBERED_TILE(name, ...) name,
#define OTHER_TILE(...)
#include "configurations_sm90.inc"
};
constexpr int kConfigurations = std::size(kTiles), kSwizzles = 4;
constexpr int64_t kTileNumbers = kConfigurations * kSwizzles * 2;

struct TunedShape {
  int rows, columns, width;
  int tile;
};

// Measured by `python csrc/tune.py`.
constexpr TunedShape kTunedShapes[] = {
#include "tiles_sm90.inc"
};

// The tile of the measured shape that is nearest in all three logarithms.
inline int tile_for(int rows, int columns, int width) {
  int best = 0;
  float nearest = INFINITY;
  for (const TunedShape& shape : kTunedShapes) {
    const float distance = distance_from(shape, rows, columns, width);
    if (distance < nearest) {
      nearest = distance;
      best = shape.tile;
    }
  }
  return best;
}

inline void set_order(int tile, Int8Arguments& arguments) {
  arguments.swizzle = 1 << tile / kConfigurations % kSwizzles;
  arguments.along_columns = tile / (kConfigurations * kSwizzles) != 0;
}

inline cudaError_t run_tile(int tile, Int8Arguments arguments, cudaStream_t stream) {
  set_order(tile, arguments);
  return kTiles[tile % kConfigurations](arguments, stream);
}

// With a side of 256 levels: the same tile, or the nearest that has been compiled; its order of tiles
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
