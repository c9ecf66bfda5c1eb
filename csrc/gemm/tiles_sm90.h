// The tile configurations of INT8 products on sm_90, and which one serves a shape.
//
// A tile is named by one number for the autotuner: configuration + 12·log2(swizzle) + 48·order, where
// order 1 walks along the columns of y, of yᵀ where the tile is swapped.
#pragma once

#include <cmath>
#include <cstdint>

#include "int8.h"

namespace questtrain {

cudaError_t int8_128x128_pingpong(const Int8Arguments&, cudaStream_t);
cudaError_t int8_128x192_pingpong_cluster_12_swapped(const Int8Arguments&, cudaStream_t);
cudaError_t int8_256x128_cooperative(const Int8Arguments&, cudaStream_t);
cudaError_t int8_192x128_pingpong(const Int8Arguments&, cudaStream_t);
cudaError_t int8_64x128_pingpong(const Int8Arguments&, cudaStream_t);
cudaError_t int8_64x128_pingpong_swapped(const Int8Arguments&, cudaStream_t);
cudaError_t int8_64x64_swapped(const Int8Arguments&, cudaStream_t);
cudaError_t int8_64x16_swapped(const Int8Arguments&, cudaStream_t);
cudaError_t int8_128x192_cooperative(const Int8Arguments&, cudaStream_t);
cudaError_t int8_128x192_pingpong(const Int8Arguments&, cudaStream_t);
cudaError_t int8_128x192_pingpong_swapped(const Int8Arguments&, cudaStream_t);
cudaError_t int8_128x192_pingpong_cluster_12(const Int8Arguments&, cudaStream_t);
cudaError_t int8_128x128_pingpong_half(const Int8Arguments&, cudaStream_t);
cudaError_t int8_64x64_swapped_half(const Int8Arguments&, cudaStream_t);
cudaError_t int8_128x128_pingpong_float(const Int8Arguments&, cudaStream_t);
cudaError_t int8_64x64_swapped_float(const Int8Arguments&, cudaStream_t);

constexpr Int8Kernel kTiles[] = {
    int8_128x128_pingpong,
    int8_128x192_pingpong_cluster_12_swapped,
    int8_256x128_cooperative,
    int8_192x128_pingpong,
    int8_64x128_pingpong,
    int8_64x128_pingpong_swapped,
    int8_64x64_swapped,
    int8_64x16_swapped,
    int8_128x192_cooperative,
    int8_128x192_pingpong,
    int8_128x192_pingpong_swapped,
    int8_128x192_pingpong_cluster_12,
};
constexpr int kConfigurations = 12, kSwizzles = 4;
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
    const float distance = std::fabs(std::log2(float(rows) / shape.rows)) +
                           std::fabs(std::log2(float(columns) / shape.columns)) +
                           std::fabs(std::log2(float(width) / shape.width));
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

}  // namespace questtrain
