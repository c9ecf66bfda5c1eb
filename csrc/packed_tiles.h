// y = x·wᵀ with int8 activations and packed 1-, 2- or 4-bit weights by Hopper's wgmma, for 3 to a few
// hundred rows of x: which tile serves a shape.
//
// A tile is named by one number for the autotuner: configuration + kPackedConfigurations · (split - 1),
// where `split` blocks share a tile's width.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>

#include "packed_linear.h"
#include "tuned_shape.h"

namespace questtrain {

// Codes after which the order of a row of x repeats (`store_for_tiles` in quantize.cu); the
// width is a multiple of it.
constexpr int tile_block(int bits) { return bits == 4 ? 128 : 256; }

// `rows` of x at a time, `groups` of 4 warps with 64 weight rows each, steps of `quads` of 128 codes, a
// multiprocessor's memory for so many `blocks`.
struct PackedTile {
  int rows, groups, quads, blocks;
};

constexpr PackedTile kPackedTiles[] = {
#define PACKED_TILE(...) {__VA_ARGS__},
#include "packed_tiles.inc"
#undef PACKED_TILE
};
constexpr int kPackedConfigurations = std::size(kPackedTiles), kMostSplits = 8;
constexpr int64_t kPackedTileNumbers = kPackedConfigurations * kMostSplits;

struct TunedPackedShape {
  int bits, rows, columns, width;
  int tile;
};

constexpr int kMostTunedRows = 256;

// Measured by `python csrc/tune_packed.py`.
constexpr TunedPackedShape kTunedPackedShapes[] = {
#include "packed_tiles_tuned.inc"
};

// The tile of the measured shape that is nearest in all three logarithms, among those of no fewer rows:
// a tile that holds all rows reads the weight once.
inline int packed_tile_for(int bits, int rows, int columns, int width) {
  int best = 0;
  float nearest = INFINITY;
  for (const TunedPackedShape& shape : kTunedPackedShapes) {
    if (shape.bits != bits || shape.rows < std::min(rows, kMostTunedRows)) continue;
    const float distance = distance_from(shape, rows, columns, width);
    if (distance < nearest) {
      nearest = distance;
      best = shape.tile;
    }
  }
  return best;
}

// `a.x` in the order of `store_for_tiles`. cudaErrorInvalidConfiguration for a tile that does not take the
// shape.
template <int bits>
cudaError_t launch_packed_tile(int tile, const PackedLinearArguments& a, cudaStream_t);

}  // namespace questtrain
