// Packed codes → fragments of the integer tensor cores.
//
// mma.m16n8k32: 16 weight rows are its A, 8 activation rows its B. The order of k within a product
// does not matter as long as both sides agree, so a lane takes 32 consecutive codes of its weight
// row, splits them by masks and shifts into 8 registers of 4 codes, and sorts the same 32
// activations the same way. With level indices q, Σ v_w·v_x = 2·Σ q·v_x - (levels-1)·Σ v_x.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "launch.cuh"
#include "packed_linear.h"

namespace questtrain {

constexpr int kLaneCodes = 32;  // of a weight row, in one piece

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
// the same order. Where `kChunksSuffice`, `sort_chunk` does so for each 8 of them alone.
template <int bits>
struct Codes;

template <>
struct Codes<4> {
  static constexpr bool kChunksSuffice = true;
  static __device__ __forceinline__ uint2 sort_chunk(uint2 x) {
    return make_uint2(__byte_perm(x.x, x.y, 0x6420), __byte_perm(x.x, x.y, 0x7531));
  }
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
      const uint2 sorted = sort_chunk(make_uint2(x[2 * i], x[2 * i + 1]));
      out[2 * i] = sorted.x;
      out[2 * i + 1] = sorted.y;
    }
  }
};

template <>
struct Codes<2> {
  static constexpr bool kChunksSuffice = false;
  static __device__ __forceinline__ uint2 sort_chunk(uint2 x) { return x; }
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
  static constexpr bool kChunksSuffice = false;
  static __device__ __forceinline__ uint2 sort_chunk(uint2 x) { return x; }
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
                                            int32_t product, float x_scale, int32_t x_sum,
                                            float weight_scale) {
  const int32_t exact = 2 * product - (a.levels - 1) * x_sum;
  const float value = x_scale * (weight_scale * static_cast<float>(exact));
  const size_t at = static_cast<size_t>(row) * a.columns + column;
  switch (a.output) {
    case Output::bfloat16: static_cast<__nv_bfloat16*>(a.y)[at] = __float2bfloat16_rn(value); break;
    case Output::half: static_cast<__half*>(a.y)[at] = __float2half_rn(value); break;
    default: static_cast<float*>(a.y)[at] = value;
  }
}

}  // namespace questtrain
