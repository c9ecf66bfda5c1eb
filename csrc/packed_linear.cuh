// The weight's bytes are the cost: every packed byte is read once, in 16-byte pieces, and unpacked in
// registers straight into fragments of the integer tensor cores.
//
// mma.m16n8k32: 16 weight rows are its A, 8 activation rows its B. The order of k within a product
// does not matter as long as both sides agree, so a lane takes 32 consecutive codes of its weight
// row, splits them by masks and shifts into 8 registers of 4 codes, and sorts the same 32
// activations the same way. With level indices q, Σ v_w·v_x = 2·Σ q·v_x - (levels-1)·Σ v_x.
//
// A block of 8 warps holds a slab of 16 or 32 weight rows; its warps share the width and add up in
// shared memory. The slab is prefetched into L2 while the kernel before, which makes x, still runs.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "launch.cuh"
#include "packed_linear.h"

namespace questtrain {

constexpr int kLaneCodes = 32;  // of a weight row, in one piece
constexpr int kMostWarps = 8;

// 4×4 bytes, transposed: out[j] holds byte j of each input.
__device__ __forceinline__ void transpose_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d,
                                                uint32_t* out) {
  const uint32_t ab_low = __byte_perm(a, b, 0x5140), ab_high = __byte_perm(a, b, 0x7362);
  const uint32_t cd_low = __byte_perm(c, d, 0x5140), cd_high = __byte_perm(c, d, 0x7362);
  out[0] = __byte_perm(ab_low, cd_low, 0x5410);
  out[1] = __byte_perm(ab_low, cd_low, 0x7632);
  out[2] = __byte_perm(ab_high, cd_high, 0x5410);
  out[3] = __byte_perm(ab_high, cd_high, 0x7632);
}

// 32 codes of `bits` bits → 8 registers of 4 level indices; `sort` brings 32 int8 activations into
// the same order.
template <int bits>
struct Codes;

template <>
struct Codes<4> {
  static __device__ __forceinline__ void split(const uint32_t* words, uint32_t (&out)[8]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[2 * i] = words[i] & 0x0f0f0f0fu;
      out[2 * i + 1] = words[i] >> 4 & 0x0f0f0f0fu;
    }
  }
  static __device__ __forceinline__ void sort(const uint32_t (&x)[8], uint32_t (&out)[8]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[2 * i] = __byte_perm(x[2 * i], x[2 * i + 1], 0x6420);
      out[2 * i + 1] = __byte_perm(x[2 * i], x[2 * i + 1], 0x7531);
    }
  }
};

template <>
struct Codes<2> {
  static __device__ __forceinline__ void split(const uint32_t* words, uint32_t (&out)[8]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] = words[i / 4] >> (2 * (i % 4)) & 0x03030303u;
  }
  static __device__ __forceinline__ void sort(const uint32_t (&x)[8], uint32_t (&out)[8]) {
    transpose_bytes(x[0], x[1], x[2], x[3], out);
    transpose_bytes(x[4], x[5], x[6], x[7], out + 4);
  }
};

template <>
struct Codes<1> {
  static __device__ __forceinline__ void split(const uint32_t* words, uint32_t (&out)[8]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] = words[0] >> i & 0x01010101u;
  }
  static __device__ __forceinline__ void sort(const uint32_t (&x)[8], uint32_t (&out)[8]) {
    transpose_bytes(x[0], x[2], x[4], x[6], out);
    transpose_bytes(x[1], x[3], x[5], x[7], out + 4);
  }
};

template <int words>
__device__ __forceinline__ void load_words(const void* source, uint32_t* target) {
  if constexpr (words == 4)
    *reinterpret_cast<uint4*>(target) = __ldcs(static_cast<const uint4*>(source));
  else if constexpr (words == 2)
    *reinterpret_cast<uint2*>(target) = __ldcs(static_cast<const uint2*>(source));
  else
    *target = __ldcs(static_cast<const uint32_t*>(source));
}

__device__ __forceinline__ void multiply_add(int32_t (&c)[4], uint32_t a0, uint32_t a1,
                                             uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void prefetch_to_l2(const void* address, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(address), "r"(bytes));
#endif
}

__device__ __forceinline__ void store_value(const PackedLinearArguments& a, int row, int column,
                                            int32_t product) {
  const int32_t exact = 2 * product - (a.levels - 1) * a.x_sums[row];
  const float value = a.x_scales[row] * (a.weight_scales[column] * static_cast<float>(exact));
  const size_t at = static_cast<size_t>(row) * a.columns + column;
  switch (a.output) {
    case Output::bfloat16: static_cast<__nv_bfloat16*>(a.y)[at] = __float2bfloat16_rn(value); break;
    case Output::half: static_cast<__half*>(a.y)[at] = __float2half_rn(value); break;
    default: static_cast<float*>(a.y)[at] = value;
  }
}

// `pieces`: how many times 32 codes a lane loads at once. `row_tiles` of 8 activation rows;
// `slab_tiles` of 16 weight rows.
template <int bits, int pieces, int row_tiles, int slab_tiles>
__global__ void __launch_bounds__(32 * kMostWarps)
packed_linear_kernel(PackedLinearArguments a) {
  constexpr int kWords = pieces * bits;            // a lane's load, in 4 bytes
  constexpr int kStep = 4 * kLaneCodes * pieces;   // of the width, by the 4 lanes of a row
  constexpr int kAhead = 4 / slab_tiles;           // loads in flight
  constexpr int kSlab = 16 * slab_tiles;
  __shared__ int32_t partial[kMostWarps][8 * row_tiles][kSlab + 1];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  const int g = lane >> 2, t = lane & 3;
  const int slab = blockIdx.x * kSlab;
  const size_t row_bytes = static_cast<size_t>(a.width) * bits / 8;
  allow_next();
  if (threadIdx.x < kSlab && slab + int(threadIdx.x) < a.columns)
    prefetch_to_l2(a.weight + (slab + threadIdx.x) * row_bytes, static_cast<uint32_t>(row_bytes));
  wait_for_previous();

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
        partial[warp][8 * r + 2 * t + i % 2][16 * s + 8 * (i / 2) + g] = sums[s][r][i];
  __syncthreads();
  for (int i = threadIdx.x; i < kSlab * a.rows; i += blockDim.x) {
    const int row = i / kSlab, column = i % kSlab;
    if (slab + column >= a.columns) continue;
    int32_t total = 0;
    for (int k = 0; k < warps; ++k) total += partial[k][row][column];
    store_value(a, row, slab + column, total);
  }
}

template <int bits, int pieces, int row_tiles, int slab_tiles>
cudaError_t launch_packed(const PackedLinearArguments& a, cudaStream_t stream) {
  const int steps = a.width / (4 * kLaneCodes * pieces);
  const int warps = steps < kMostWarps ? steps : kMostWarps;
  const int blocks = (a.columns + 16 * slab_tiles - 1) / (16 * slab_tiles);
  return launch_dependent(packed_linear_kernel<bits, pieces, row_tiles, slab_tiles>, dim3(blocks),
                          dim3(32 * warps), 0, stream, a);
}

template <int bits, int pieces>
cudaError_t launch_rows(const PackedLinearArguments& a, cudaStream_t stream) {
  if (a.rows <= 8) return launch_packed<bits, pieces, 1, 1>(a, stream);
  if (a.rows <= 16) return launch_packed<bits, pieces, 2, 1>(a, stream);
  if (a.rows <= 32) return launch_packed<bits, pieces, 4, 1>(a, stream);
  return launch_packed<bits, pieces, 8, 1>(a, stream);
}

// The widest loads that divide the row.
template <int bits>
cudaError_t launch_bits(const PackedLinearArguments& a, cudaStream_t stream) {
  if constexpr (bits == 1)
    if (a.width % 512 == 0) return launch_rows<bits, 4>(a, stream);
  if constexpr (bits <= 2)
    if (a.width % 256 == 0) return launch_rows<bits, 2>(a, stream);
  return launch_rows<bits, 1>(a, stream);
}

}  // namespace questtrain
