// The two Hadamard transforms, unnormalized, of a row of which a thread has 4 chunks of 8 elements,
// and which chunks of the row these are.
// - TensorCore, for 16-bit operands and blocks of 128. H_128 = H_16 ⊗ H_8: the tensor cores
//   multiply by H_16 (±1 is exact in bf16, sums are fp32), three stages of additions within the
//   thread do the rest. No shuffles, no conversion to fp32: half the instructions of a butterfly.
// - Butterfly, for fp32 operands and the other blocks: 3 stages within the chunk, then shuffles.
#pragma once

#include "chunk.cuh"

namespace questtrain {

struct Butterfly {
  static constexpr int kStep = 32;  // from one of a thread's chunks to its next
  // The chunk that says of a thread's i-th whether it is inside its row.
  static constexpr __host__ __device__ int anchor(int i) { return i; }

  static __device__ __forceinline__ int position(int warp, int lane, int i) {
    return warp * 128 + i * 32 + lane;
  }

  template <class T>
  static __device__ __forceinline__ void apply(const Chunk<T> (&x)[kChunks],
                                               float (&v)[kChunks][8], int block, int lane) {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      widen(x[i], v[i]);
      if (block == 1) continue;
#pragma unroll
      for (int stride = 1; stride < 8; stride <<= 1)
#pragma unroll
        for (int j = 0; j < 8; ++j)
          if (!(j & stride)) {
            const float a = v[i][j], b = v[i][j | stride];
            v[i][j] = a + b;
            v[i][j | stride] = a - b;
          }
#pragma unroll
      for (int stride = 1; stride < 32; stride <<= 1) {
        if (stride * 8 >= block) continue;
        const float sign = (lane & stride) ? -1.f : 1.f;
#pragma unroll
        for (int j = 0; j < 8; ++j)
          v[i][j] = fmaf(sign, v[i][j], __shfl_xor_sync(0xffffffffu, v[i][j], stride));
      }
    }
  }
};

// mma.m16n8k16 with the warp's 8 blocks of 128 as rows. Of an element's index in its block, bits
// 0, 1 (place in the chunk) and 3, 4 (lane within the quad) are summed over by the tensor core;
// bit 2 tells rows g from g + 8; bits 5, 6 number the thread's chunks.
struct TensorCore {
  static constexpr int kStep = 4;
  static constexpr __host__ __device__ int anchor(int) { return 0; }  // all are of one block

  static __device__ __forceinline__ int position(int warp, int lane, int i) {
    return (warp * 8 + (lane >> 2)) * 16 + i * 4 + (lane & 3);
  }

  // Column n = 8·tile + g of H_16 stands for quad lane g/2 and place g%2 + 2·tile; row k for quad
  // lane t and places 0, 1 (register 0) or 2, 3 (register 1). Two entries of ±1 a register, alike in
  // both tiles and registers, but of the other sign in tile 1's register 1.
  template <class T>
  static __device__ __forceinline__ uint32_t signs(int lane) {
    const uint32_t ones = std::is_same_v<T, __half> ? 0x3c003c00u : 0x3f803f80u, g = lane >> 2;
    return ones ^ (__popc(lane & 3 & (g >> 1)) & 1u) * 0x80008000u ^ g << 31;
  }

  template <class T>
  static __device__ __forceinline__ void multiply(float* c, const uint4& a, uint32_t b0,
                                                  uint32_t b1) {
    if constexpr (std::is_same<T, __half>::value)
      asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
          "{%10,%10,%10,%10};"
          : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
          : "r"(a.x), "r"(a.z), "r"(a.y), "r"(a.w), "r"(b0), "r"(b1), "f"(0.f));
    else
      asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
          "{%8,%9}, {%10,%10,%10,%10};"
          : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
          : "r"(a.x), "r"(a.z), "r"(a.y), "r"(a.w), "r"(b0), "r"(b1), "f"(0.f));
  }

  template <class T>
  static __device__ __forceinline__ void apply(const Chunk<T> (&x)[kChunks],
                                               float (&v)[kChunks][8], int, int lane) {
    const uint32_t b = signs<T>(lane), negative = b ^ 0x80008000u;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const uint4 a = *reinterpret_cast<const uint4*>(&x[i]);
      float low[4], high[4];  // places 0, 1 and 2, 3, first of bit 2 clear, then of bit 2 set
      multiply<T>(low, a, b, b);
      multiply<T>(high, a, b, negative);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        v[i][j] = low[j] + low[j + 2];
        v[i][j + 4] = low[j] - low[j + 2];
        v[i][j + 2] = high[j] + high[j + 2];
        v[i][j + 6] = high[j] - high[j + 2];
      }
    }
#pragma unroll
    for (int stride = 1; stride < kChunks; stride <<= 1)
#pragma unroll
      for (int i = 0; i < kChunks; ++i)
        if (!(i & stride))
#pragma unroll
          for (int j = 0; j < 8; ++j) {
            const float a = v[i][j], b = v[i | stride][j];
            v[i][j] = a + b;
            v[i | stride][j] = a - b;
          }
  }
};

}  // namespace questtrain
