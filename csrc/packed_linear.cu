// The streaming form: any number of rows up to 64, any width. A block of 8 warps holds a slab of 16
// weight rows; its warps share the width and add up in shared memory, exactly, in any order;
// activations come from L2.
//
// An object for each BITS: 1 2 4
#include "packed_codes.cuh"

namespace questtrain {

constexpr int kMostWarps = 8;

// `pieces`: how many times 32 codes a lane loads at once. `row_tiles` of 8 activation rows;
// `slab_tiles` of 16 weight rows.
template <int bits, int pieces, int row_tiles, int slab_tiles>
__global__ void __launch_bounds__(32 * kMostWarps)
packed_linear_kernel(PackedLinearArguments a) {
  constexpr int kWords = pieces * bits;            // a lane's load, in 4 bytes
  constexpr int kStep = 4 * kLaneCodes * pieces;   // of the width, by the 4 lanes of a row
  constexpr int kAhead = 4 / slab_tiles;           // loads in flight
  constexpr int kSlab = 16 * slab_tiles;
  __shared__ int32_t totals[8 * row_tiles][kSlab + 1];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  const int g = lane >> 2, t = lane & 3;
  const int slab = blockIdx.x * kSlab;
  const size_t row_bytes = static_cast<size_t>(a.width) * bits / 8;
  allow_next();
  if (threadIdx.x < kSlab && slab + int(threadIdx.x) < a.columns)
    prefetch_to_l2(a.weight + (slab + threadIdx.x) * row_bytes, static_cast<uint32_t>(row_bytes));
  for (int i = threadIdx.x; i < 8 * row_tiles * (kSlab + 1); i += blockDim.x)
    (&totals[0][0])[i] = 0;
  wait_for_previous();
  __syncthreads();

  // Rows beyond the last column repeat it; their results are not stored.
  const uint8_t* weight_rows[slab_tiles][2];
#pragma unroll
  for (int s = 0; s < slab_tiles; ++s)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      weight_rows[s][half] =
          a.weight + min(slab + 16 * s + 8 * half + g, a.columns - 1) * row_bytes;

  int32_t sums[slab_tiles][row_tiles][4] = {};
  const int steps = a.width / kStep;
  for (int first = warp; first < steps; first += warps * kAhead) {
    uint32_t packed[kAhead][slab_tiles][2][kWords];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int step = first + i * warps;
      if (step >= steps) break;
#pragma unroll
      for (int s = 0; s < slab_tiles; ++s)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          load_words<kWords>(weight_rows[s][half] + (step * 4 + t) * (4 * kWords),
                             packed[i][s][half]);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int step = first + i * warps;
      if (step >= steps) break;
#pragma unroll
      for (int p = 0; p < pieces; ++p) {
        uint32_t w[slab_tiles][2][8];
#pragma unroll
        for (int s = 0; s < slab_tiles; ++s)
#pragma unroll
          for (int half = 0; half < 2; ++half)
            Codes<bits>::split(&packed[i][s][half][p * bits], w[s][half]);
#pragma unroll
        for (int r = 0; r < row_tiles; ++r) {
          uint32_t raw[8] = {}, x[8];
          const int row = 8 * r + g;
          if (row < a.rows) {
            const uint4* source = reinterpret_cast<const uint4*>(
                a.x + static_cast<size_t>(row) * a.width + (step * 4 + t) * (kLaneCodes * pieces) +
                p * kLaneCodes);
            *reinterpret_cast<uint4*>(raw) = source[0];
            *reinterpret_cast<uint4*>(raw + 4) = source[1];
          }
          Codes<bits>::sort(raw, x);
#pragma unroll
          for (int s = 0; s < slab_tiles; ++s)
#pragma unroll
            for (int k = 0; k < 8; k += 2)
              multiply_add(sums[s][r], w[s][0][k], w[s][1][k], w[s][0][k + 1], w[s][1][k + 1],
                           x[k], x[k + 1]);
        }
      }
    }
  }

#pragma unroll
  for (int s = 0; s < slab_tiles; ++s)
#pragma unroll
    for (int r = 0; r < row_tiles; ++r)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        atomicAdd(&totals[8 * r + 2 * t + i % 2][16 * s + 8 * (i / 2) + g], sums[s][r][i]);
  __syncthreads();
  for (int i = threadIdx.x; i < kSlab * a.rows; i += blockDim.x) {
    const int row = i / kSlab, column = i % kSlab;
    if (slab + column >= a.columns) continue;
    store_value(a, row, slab + column, totals[row][column], a.x_scales[row], a.x_sums[row],
                a.weight_scales[slab + column]);
  }
}

template <int bits, int pieces, int row_tiles, int slab_tiles>
cudaError_t launch_tiles(const PackedLinearArguments& a, cudaStream_t stream) {
  const int steps = a.width / (4 * kLaneCodes * pieces);
  const int warps = steps < kMostWarps ? steps : kMostWarps;
  const int blocks = (a.columns + 16 * slab_tiles - 1) / (16 * slab_tiles);
  return launch_dependent(packed_linear_kernel<bits, pieces, row_tiles, slab_tiles>, dim3(blocks),
                          dim3(32 * warps), 0, stream, a);
}

template <int bits, int pieces>
cudaError_t launch_rows(const PackedLinearArguments& a, cudaStream_t stream) {
  if (a.rows <= 8) return launch_tiles<bits, pieces, 1, 1>(a, stream);
  if (a.rows <= 16) return launch_tiles<bits, pieces, 2, bits == 4 ? 1 : 2>(a, stream);
  if (a.rows <= 32) return launch_tiles<bits, pieces, 4, 2>(a, stream);
  return launch_tiles<bits, pieces, 8, 2>(a, stream);
}

// The widest loads that divide the row.
template <int bits>
cudaError_t launch_packed_linear(const PackedLinearArguments& a, cudaStream_t stream) {
  if constexpr (bits == 1)
    if (a.width % 512 == 0) return launch_rows<bits, 4>(a, stream);
  if constexpr (bits <= 2)
    if (a.width % 256 == 0) return launch_rows<bits, 2>(a, stream);
  return launch_rows<bits, 1>(a, stream);
}

template cudaError_t launch_packed_linear<BITS>(const PackedLinearArguments&, cudaStream_t);

}  // namespace questtrain
